"""Omniglot's images: 1623 characters with 20 drawings each, from the two archives, unpacked folders or merged ones."""

import contextlib
import functools
import os
import random
import zipfile
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from maml import commands
from maml.errors import UserError, one_line
from maml.tasks.class_folders import unwrapped
from maml.tasks.image_files import (
    ImageFile,
    check_member,
    decode,
    folder_files,
    hidden,
    listed,
    open_member,
    opener,
    upright_on_white,
    visible,
)
from maml.tasks.split import ImageSplit, Source, key_of

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20
SPLIT = {"train": slice(0, 1100), "val": slice(1100, 1200), "test": slice(1200, 1623)}
PLUS_PLUS_SPLIT = {"train": slice(0, 1150), "val": slice(1150, 1200), "test": slice(1200, 1623)}
SEED = 1

RESIZES = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_MOST_MEMBER_BYTES = 1 << 20  # a drawing has some 200 bytes


def download_command(*arguments: str) -> str:
    """What downloads the archives."""
    return commands.module("maml.tasks.omniglot", *arguments)


class _Part(NamedTuple):
    """Omniglot's background or evaluation half, or both merged: an archive or a folder.

    path: of the archive or the folder.
    characters: how many it must hold.
    """

    path: str
    characters: int


def omniglot_source(data_dir: str, split: str, size: int, resize: str, conventions: str = "maml") -> Source:
    """1623 characters, sorted, shuffled and split 1100 / 100 / 423 (of MAML++: 1150 / 50 / 423); ink is 255."""
    parts = _omniglot_parts(data_dir)
    files = [path for part in parts for path in _part_paths(part.path)]
    return Source(key_of(files, data_dir), functools.partial(_build_omniglot, parts, split, size, resize, conventions))


def _omniglot_parts(data_dir: str) -> list[_Part]:
    """Finds the two archives, their unpacked folders, or the alphabets' folders merged in one.

    Raises:
        UserError: nothing was found, or one half only.
    """
    way_out = f"run `{download_command('--data_dir', os.path.abspath(data_dir))}` to download Omniglot"
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; {way_out}, or name its folder with --data_dir")
    if not any(os.path.exists(os.path.join(data_dir, name + end)) for name in CHARACTERS for end in ("", ".zip")):
        data_dir = unwrapped(data_dir)
    found, missing = [], []
    for name, characters in CHARACTERS.items():
        folder = os.path.join(data_dir, name)
        archive = folder + ".zip"
        if os.path.isfile(archive):
            found.append(_Part(archive, characters))
        elif os.path.isdir(folder):
            found.append(_Part(unwrapped(folder), characters))
        else:
            missing.append(name)
    if not missing:
        return found
    if found:
        raise UserError(
            f"{data_dir} has {os.path.basename(found[0].path)} but no {missing[0]}.zip, and both are needed; {way_out}"
        )
    if visible(data_dir)[0]:
        return [_Part(data_dir, sum(CHARACTERS.values()))]
    raise UserError(f"{data_dir}: no images_background.zip and no images_evaluation.zip in it; {way_out}")


def _part_paths(path: str) -> list[str]:
    """The archive, or all files of the unpacked folder."""
    return [path] if os.path.isfile(path) else [found for _, found in folder_files(path, 2)]


def omniglot_order(characters: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (alphabet, character) pairs of all 50 alphabets in the order that the split cuts.

    The official code shuffles the file system's order with this seed; sorting first makes the
    split the same on every machine.
    """
    order = sorted(characters)
    random.Random(SEED).shuffle(order)
    return order


def plus_plus_order(characters: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same for the split of the official MAML++ code: sorted by path, shuffled by a seed that its seed 0 draws."""
    order = sorted(characters, key="/".join)
    places = np.arange(len(order), dtype=np.int32)
    np.random.RandomState(np.random.RandomState(0).randint(1, 999999)).shuffle(places)
    return [order[place] for place in places]


def _build_omniglot(
    parts: list[_Part], split: str, size: int, resize: str, conventions: str, rows: np.ndarray | None
) -> ImageSplit:
    with contextlib.ExitStack() as stack:
        drawings: dict[tuple[str, str], list[ImageFile]] = {}
        for part in parts:
            drawings |= _characters(part, stack)
        if len(drawings) != sum(CHARACTERS.values()):
            raise UserError(f"{parts[0].path} and {parts[1].path} hold the same characters; both halves are needed")
        plus_plus = conventions == "maml++"
        order, cuts = (plus_plus_order, PLUS_PLUS_SPLIT) if plus_plus else (omniglot_order, SPLIT)
        names = order(drawings)[cuts[split]]
        images = decode(
            [drawing for name in names for drawing in drawings[name]],
            functools.partial(drawing, size=size, resize=resize),
            size * size,
            f"omniglot {split}",
            f"delete the archives and download them again with `{download_command()}`",
            rows,
        )
    counts = np.full(len(names), DRAWINGS, np.int64)
    return ImageSplit(images, counts, tuple("/".join(name) for name in names))


def drawing(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """A drawing resized and inverted: uint8, ink is 255."""
    image = upright_on_white(image)
    if resize != "nearest":
        image = image.convert("L")
    if image.size != (size, size):
        image = image.resize((size, size), RESIZES[resize])
    return 255 - np.asarray(image.convert("L"))


def _characters(part: _Part, stack: contextlib.ExitStack) -> dict[tuple[str, str], list[ImageFile]]:
    """The sorted drawings of each (alphabet, character) of a part.

    Raises:
        UserError: the archive is corrupt or hostile, or characters or drawings are missing.
    """
    if os.path.isfile(part.path):
        members = _archive_members(part.path, stack)
    else:
        members = {name: opener(path) for name, path in folder_files(part.path, 2)}
    found: dict[tuple[str, str], list[ImageFile]] = {}
    deeper = []
    for name in sorted(members):
        pieces = name.split("/")
        if len(pieces) == 3 and name.lower().endswith(".png"):
            found.setdefault((pieces[0], pieces[1]), []).append(ImageFile(f"{part.path}/{name}", members[name]))
        elif name.lower().endswith(".png"):
            deeper.append(name)
    if deeper:
        raise UserError(
            f"{part.path}: {len(deeper)} drawings do not lie in <alphabet>/<character>/: {listed(deeper)}; "
            "move them there, or name the folder around the alphabets with --data_dir"
        )
    if len(found) != part.characters:
        raise UserError(
            f"{part.path} has {len(found)} characters, and Omniglot has {part.characters} there; "
            f"delete it and run `{download_command()}`"
        )
    wrong = [f"{'/'.join(name)} ({len(files)})" for name, files in found.items() if len(files) != DRAWINGS]
    if wrong:
        raise UserError(
            f"{part.path}: {DRAWINGS} drawings a character are needed, but these have another number: "
            f"{listed(wrong)}; delete it and run `{download_command()}`"
        )
    return found


def _archive_members(path: str, stack: contextlib.ExitStack) -> dict[str, Callable[[], BinaryIO]]:
    """Openers of an archive's visible files, by name without the leading folder."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except Exception as error:  # a damaged directory of members raises nearly anything
        raise UserError(
            f"{path} is not a readable zip archive ({one_line(error)}): delete it and run `{download_command()}`"
        ) from error
    top = os.path.basename(path).removesuffix(".zip") + "/"
    members: dict[str, Callable[[], BinaryIO]] = {}
    for info in archive.infolist():
        check_member(path, info.filename)
        name = info.filename
        while name.startswith(top):
            name = name.removeprefix(top)
        if not info.is_dir() and not any(hidden(piece) for piece in name.split("/")):
            members[name] = functools.partial(open_member, archive, info, _MOST_MEMBER_BYTES)
    return members
