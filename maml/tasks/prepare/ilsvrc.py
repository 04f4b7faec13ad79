"""ILSVRC2012's training images: a folder or a tar a class, or the tar of all tars, read in place."""

import functools
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from tqdm import tqdm

from maml.errors import UserError, one_line
from maml.tasks.image_files import ImageFile, check_member, is_image, listed, opener, visible
from maml.tasks.prepare.lists import Listed, listed_pictures
from maml.tasks.prepare.pictures import Picture

FOLDERS = ("", "train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
TAR = "ILSVRC2012_img_train.tar"

_NAME = re.compile(r"(n\d{8})_(\d{1,9})\.jpe?g", re.IGNORECASE)
_MOST_IMAGE_BYTES = 1 << 26


def folder_classes(folder: str) -> dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]]:
    """For each class with a folder or a tar in `folder`, what lists its (name, image)."""
    if not os.path.isdir(folder):
        return {}
    folders, files = visible(folder)
    tars: dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]] = {
        entry.name.removesuffix(".tar"): functools.partial(_tar_images, entry.path, 0)
        for entry in files
        if re.fullmatch(r"n\d{8}\.tar", entry.name)
    }
    return tars | {entry.name: functools.partial(_folder_images, entry.path) for entry in folders}


def tar_classes(path: str) -> dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]]:
    """The same for the tar of the classes' tars."""
    return {
        name.removesuffix(".tar"): functools.partial(_tar_images, path, offset)
        for name, offset, _ in _tar_members(path, 0)
    }


def _folder_images(folder: str) -> Iterator[tuple[str, ImageFile]]:
    folders, files = visible(folder)
    for entry in folders + files:
        yield entry.name, ImageFile(entry.path, opener(entry.path))


def _tar_images(path: str, start: int) -> Iterator[tuple[str, ImageFile]]:
    for name, offset, size in _tar_members(path, start):
        yield name, ImageFile(f"{path}/{name}", functools.partial(_slice, path, offset, size))


def _tar_members(path: str, start: int) -> list[tuple[str, int, int]]:
    """(name, first byte, size) of the members of a tar that begins at byte `start` of a file.

    Nothing is unpacked: ILSVRC2012's tar holds one tar a class, and images are read in place.
    """
    members = []
    try:
        with open(path, "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    check_member(path, info.name)
                    if not info.isdir():
                        if not info.isreg() or info.issparse():
                            raise UserError(f"{path}: its member {info.name!r} is not a plain file; it is refused")
                        members.append((info.name.removeprefix("./"), info.offset_data, info.size))
    except UserError:
        raise
    except Exception as error:  # damaged headers raise nearly anything
        raise UserError(
            f"{path} is not a readable, uncompressed tar ({one_line(error)}); get it again or unpack it"
        ) from error
    return members


def _slice(path: str, start: int, size: int) -> BinaryIO:
    """`size` bytes of a file from byte `start` on."""
    if size > _MOST_IMAGE_BYTES:
        raise ValueError(f"{size} bytes")
    with open(path, "rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def from_ilsvrc(
    where: str,
    classes: dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]],
    lists: dict[str, list[Listed]],
) -> list[Picture]:
    """The listed images; a list's number is the image's place in its class, from 1."""
    names = sorted({row.label for rows in lists.values() for row in rows})
    missing = [name for name in names if name not in classes]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(names)} classes are missing: {listed(missing)}; add their folders or tars"
        )
    progress = tqdm(names, "listing ILSVRC2012", unit="class", disable=None, leave=False)
    ordered = {name: _in_order(name, classes[name]()) for name in progress}
    beyond = [
        f"{row.name} ({len(ordered[row.label])} images)"
        for rows in lists.values()
        for row in rows
        if not 1 <= row.position <= len(ordered[row.label])
    ]
    if beyond:
        raise UserError(
            f"{where}: {len(beyond)} listed images lie beyond the end of their class: {listed(beyond)}; "
            "all images of ILSVRC2012's classes are needed, because the lists count them"
        )
    return listed_pictures(lists, lambda row: ordered[row.label][row.position - 1])


def _in_order(label: str, images: Iterable[tuple[str, ImageFile]]) -> list[ImageFile]:
    """A class's images by the number in their names.

    Raises:
        UserError: a name is not of the form n01532829_13.JPEG, or two have one number.
    """
    numbered: dict[int, ImageFile] = {}
    strange = []
    for name, image in images:
        if not is_image(name):
            continue
        match = _NAME.fullmatch(name)
        if not match or match[1] != label or int(match[2]) in numbered:
            strange.append(image.name)
        else:
            numbered[int(match[2])] = image
    if strange:
        raise UserError(
            f"class {label}: {len(strange)} files are not ILSVRC2012's ({label}_<number>.JPEG, each number once): "
            f"{listed(strange)}; move them out of it, because the lists count the class's files"
        )
    return [numbered[number] for number in sorted(numbered)]
