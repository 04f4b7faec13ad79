"""Images of a data set's split, as one uint8 array.

`load_split` reads Omniglot (archives or folders) and folders of classes (miniImageNet, one's own
data), and keeps the result prepared on disk.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from maml.errors import UserError
from maml.tasks import cache
from maml.tasks.image_files import (
    MODES,
    ImageFile,
    check_member,
    class_images,
    decode,
    fit,
    folder_files,
    hidden,
    listed,
    opener,
    upright_on_white,
    visible,
)

DEFAULT_DIRS = {"omniglot": "data/omniglot", "miniimagenet": "data/miniImagenet"}
SPLITS = ("train", "val", "test")

OMNIGLOT_CHARACTERS = {"images_background": 964, "images_evaluation": 659}
OMNIGLOT_DRAWINGS = 20
OMNIGLOT_SPLIT = {"train": slice(0, 1100), "val": slice(1100, 1200), "test": slice(1200, 1623)}
OMNIGLOT_SEED = 1

_RESIZES = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_MOST_MEMBER_BYTES = 1 << 20  # an Omniglot drawing has some 200 bytes


class ImageSplit(NamedTuple):
    """All images of the classes of a split (train, val or test).

    images: uint8 [total, height * width * channels]; the images of a class stand together,
        classes in the order of `names`. May be memory-mapped.
    counts: int64 [classes], images of each class.
    names: the classes.
    content: a hash of all that, however and wherever the files are kept.
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    content: str = ""


class _Source(NamedTuple):
    """What a split is made of.

    key: changes when the files do; cheap to compute.
    build: reads and prepares the images.
    """

    key: str
    build: Callable[[], ImageSplit]


def load_split(
    datasource: str, data_dir: str, split: str, *, image_size: int, channels: int, resize: str = "nearest"
) -> ImageSplit:
    """The images of a split, from the cache if they were prepared before.

    Args:
        datasource: "omniglot", "miniimagenet", or "folder" for one's own train/, val/ and test/
            folders of class folders.
        data_dir: its folder; "" for the default.
        split: "train", "val" or "test".
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (colour).
        resize: Omniglot only. "nearest" is what the official code comes to: it asks for LANCZOS,
            which does not exist for 1-bit images. "lanczos" resizes as grey images. Other data
            is always resized with LANCZOS, and only where it has another size.

    Raises:
        UserError: data is missing or broken.
    """
    if datasource not in (*DEFAULT_DIRS, "folder") or split not in SPLITS or resize not in _RESIZES:
        raise UserError(f"no such data: datasource {datasource!r}, split {split!r}, resize {resize!r}")
    if channels not in MODES or image_size < 1 or (datasource == "omniglot" and channels != 1):
        raise UserError(f"{datasource} images cannot have size {image_size} and {channels} channels")
    data_dir = data_dir or DEFAULT_DIRS.get(datasource, "")
    if not data_dir:
        raise UserError("--datasource=folder needs --data_dir, a folder with train/, val/ and test/ in it")
    if datasource == "omniglot":
        source = _omniglot(data_dir, split, image_size, resize)
    else:
        source = _class_folders(datasource, data_dir, split, image_size, channels)
        resize = "lanczos"
    places = cache.paths(data_dir, f"{datasource}-{split}-{image_size}x{channels}-{resize}.images")
    return _kept(places, source)


def read_images(
    paths: list[str], datasource: str, *, image_size: int, channels: int, resize: str = "nearest"
) -> np.ndarray:
    """Image files, prepared as `load_split` prepares those of a data source: uint8 [n, height, width, channels].

    Omniglot's drawings are expected in ink on paper and come out inverted.

    Args:
        paths: PNG or JPEG files.
        datasource, image_size, channels, resize: see `load_split`.

    Raises:
        UserError: some are unreadable, or there are none.
    """
    if not paths:
        raise UserError("no image files were named; name at least one")
    if datasource == "omniglot":
        convert = functools.partial(_drawing, size=image_size, resize=resize)
    else:
        convert = functools.partial(fit, size=image_size, channels=channels)
    files = [ImageFile(path, opener(path)) for path in paths]
    rows = decode(files, convert, image_size * image_size * channels, "images", "replace or remove them")
    return rows.reshape(-1, image_size, image_size, channels)


def check_enough(split: ImageSplit, name: str, num_classes: int, shots: int, queries: int) -> None:
    """Raises UserError if tasks of `num_classes` classes x (shots + queries) images cannot be drawn.

    Args:
        split: the images.
        name: the split's name for the message, such as "omniglot val".
        num_classes: classes of a task.
        shots: support images a class.
        queries: query images a class.
    """
    if len(split.names) < num_classes:
        raise UserError(
            f"{name} has {len(split.names)} classes, and --num_classes={num_classes} needs {num_classes}: "
            "lower --num_classes"
        )
    smallest = int(np.argmin(split.counts))
    if split.counts[smallest] < shots + queries:
        raise UserError(
            f"{name} has {split.counts[smallest]} images in class {split.names[smallest]}, and {shots}-shot with "
            f"{queries} queries needs {shots + queries}: lower --update_batch_size or --query_size"
        )


def _kept(places: list[str], source: _Source) -> ImageSplit:
    """The split from the cache, or built and put there."""
    for path in places:
        found = cache.load(path, source.key)
        if found is not None:
            images, facts = found
            counts, names = np.array(facts["counts"], np.int64), tuple(facts["names"])
            return ImageSplit(images, counts, names, facts.get("content") or _content(images, counts, names))
    built = source.build()
    built = built._replace(content=_content(built.images, built.counts, built.names))
    facts = {"counts": built.counts.tolist(), "names": list(built.names), "content": built.content}
    written = cache.store(places, source.key, built.images, facts)
    found = cache.load(written, source.key) if written else None
    return built._replace(images=found[0]) if found else built


def _content(images: np.ndarray, counts: np.ndarray, names: tuple[str, ...]) -> str:
    """A hash of a split's pixels, classes and their sizes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([images.shape[1:], counts.tolist(), names]).encode())
    for start in range(0, len(images), 1024):
        digest.update(images[start : start + 1024].tobytes())
    return digest.hexdigest()


# Omniglot


class _Part(NamedTuple):
    """Omniglot's background or evaluation half, or both merged: an archive or a folder.

    path: of the archive or the folder.
    characters: how many it must hold.
    """

    path: str
    characters: int


def _omniglot(data_dir: str, split: str, size: int, resize: str) -> _Source:
    """1623 characters, sorted, shuffled with seed 1 and split 1100 / 100 / 423; ink is 255."""
    parts = _omniglot_parts(data_dir)
    files = [path for part in parts for path in _part_paths(part.path)]
    return _Source(_digest(files, data_dir), functools.partial(_build_omniglot, parts, split, size, resize))


def _omniglot_parts(data_dir: str) -> list[_Part]:
    """Finds the two archives, their unpacked folders, or the alphabets' folders merged in one.

    Raises:
        UserError: nothing was found, or one half only.
    """
    way_out = f"run `python -m maml.tasks.omniglot --data_dir {data_dir}` to download Omniglot"
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; {way_out}, or name its folder with --data_dir")
    found, missing = [], []
    for name, characters in OMNIGLOT_CHARACTERS.items():
        folder = os.path.join(data_dir, name)
        archive = folder + ".zip"
        if os.path.isfile(archive):
            found.append(_Part(archive, characters))
        elif os.path.isdir(folder):
            found.append(_Part(folder, characters))
        else:
            missing.append(name)
    if not missing:
        return found
    if found:
        raise UserError(
            f"{data_dir} has {os.path.basename(found[0].path)} but no {missing[0]}.zip, and both are needed; {way_out}"
        )
    if visible(data_dir)[0]:
        return [_Part(data_dir, sum(OMNIGLOT_CHARACTERS.values()))]
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
    random.Random(OMNIGLOT_SEED).shuffle(order)
    return order


def _build_omniglot(parts: list[_Part], split: str, size: int, resize: str) -> ImageSplit:
    with contextlib.ExitStack() as stack:
        drawings: dict[tuple[str, str], list[ImageFile]] = {}
        for part in parts:
            drawings |= _characters(part, stack)
        if len(drawings) != sum(OMNIGLOT_CHARACTERS.values()):
            raise UserError(f"{parts[0].path} and {parts[1].path} hold the same characters; both halves are needed")
        names = omniglot_order(drawings)[OMNIGLOT_SPLIT[split]]
        images = decode(
            [drawing for name in names for drawing in drawings[name]],
            functools.partial(_drawing, size=size, resize=resize),
            size * size,
            f"omniglot {split}",
            "download the archives again with `python -m maml.tasks.omniglot`",
        )
    counts = np.full(len(names), OMNIGLOT_DRAWINGS, np.int64)
    return ImageSplit(images, counts, tuple("/".join(name) for name in names))


def _drawing(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """A drawing resized and inverted: uint8, ink is 255."""
    image = upright_on_white(image)
    if resize != "nearest":
        image = image.convert("L")
    if image.size != (size, size):
        image = image.resize((size, size), _RESIZES[resize])
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
    strange = []
    for name in sorted(members):
        pieces = name.split("/")
        if len(pieces) == 3 and name.lower().endswith(".png"):
            found.setdefault((pieces[0], pieces[1]), []).append(ImageFile(f"{part.path}/{name}", members[name]))
        else:
            strange.append(name)
    if strange:
        raise UserError(f"{part.path}: not <alphabet>/<character>/*.png: {listed(strange)}; remove them")
    if len(found) != part.characters:
        raise UserError(
            f"{part.path} has {len(found)} characters, and Omniglot has {part.characters} there; "
            "delete it and run `python -m maml.tasks.omniglot`"
        )
    wrong = [f"{'/'.join(name)} ({len(files)})" for name, files in found.items() if len(files) != OMNIGLOT_DRAWINGS]
    if wrong:
        raise UserError(
            f"{part.path}: {OMNIGLOT_DRAWINGS} drawings a character are needed, but these have another number: "
            f"{listed(wrong)}; delete it and run `python -m maml.tasks.omniglot`"
        )
    return found


def _archive_members(path: str, stack: contextlib.ExitStack) -> dict[str, Callable[[], BinaryIO]]:
    """Openers of an archive's visible files, by name without the leading folder."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except Exception as error:  # a damaged directory of members raises nearly anything
        raise UserError(
            f"{path} is not a readable zip archive ({error}): delete it and run `python -m maml.tasks.omniglot`"
        ) from error
    top = os.path.basename(path).removesuffix(".zip") + "/"
    members: dict[str, Callable[[], BinaryIO]] = {}
    for info in archive.infolist():
        check_member(path, info.filename)
        name = info.filename.removeprefix(top)
        if not info.is_dir() and not any(hidden(piece) for piece in name.split("/")):
            members[name] = functools.partial(_open_member, archive, info)
    return members


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    if info.file_size > _MOST_MEMBER_BYTES:
        raise ValueError(f"{info.file_size} bytes")
    return io.BytesIO(archive.read(info))


# Folders of classes


def _class_folders(datasource: str, data_dir: str, split: str, size: int, channels: int) -> _Source:
    """<data_dir>/<split>/<class>/ with JPEG or PNG images."""
    if datasource == "miniimagenet":
        way_out = "run `python proc_images.py` to prepare miniImageNet, or name its folder with --data_dir"
    else:
        way_out = "train/, val/ and test/ with a folder a class are needed; `proc_images.py --make_splits` makes them"
    folder = os.path.join(data_dir, split)
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; {way_out}")
    if not os.path.isdir(folder):
        raise UserError(f"{data_dir}: no folder {split} in it; {way_out}")
    classes = class_images(folder)
    if not classes:
        raise UserError(f"{folder}: no class folders in it; {way_out}")
    key = _digest((path for paths in classes.values() for path in paths), folder)
    return _Source(key, functools.partial(_build_classes, classes, f"{datasource} {split}", size, channels))


def _build_classes(classes: dict[str, list[str]], label: str, size: int, channels: int) -> ImageSplit:
    images = decode(
        [ImageFile(path, opener(path)) for paths in classes.values() for path in paths],
        functools.partial(fit, size=size, channels=channels),
        size * size * channels,
        label,
        "replace or remove them",
    )
    counts = np.array([len(paths) for paths in classes.values()], np.int64)
    return ImageSplit(images, counts, tuple(classes))


def _digest(paths: Iterable[str], folder: str) -> str:
    """A short hash of the names below `folder`, sizes and times of change of files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            facts = os.stat(path)
            line = f"{path[len(folder) :]}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        except OSError:  # a link to nothing; decoding it will name it
            line = f"{path[len(folder) :]}\0\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()
