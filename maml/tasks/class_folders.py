"""Folders of classes: your own images, and data sets that are handed out as folders.

<data folder>/train/<class>/<image>     the same for val (or validation, valid) and test
<data folder>/train/<kind>/<class>/…    every folder that holds images is a class, however deep it lies
"""

import hashlib
import os
from typing import NamedTuple

import numpy as np

from maml.errors import UserError
from maml.tasks import cache
from maml.tasks.image_files import is_image, listed, visible
from maml.tasks.split import key_of

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
SPLITS = tuple(SPLIT_NAMES)
DEEPEST = 8  # a link to a folder above itself would never end


class Classes(NamedTuple):
    """What lies in a folder of classes.

    paths: the sorted image paths of each class, classes sorted; "animals/cat" where folders are nested.
    ignored: names of what is no image of a class.
    empty: class folders without an image.
    """

    paths: dict[str, list[str]]
    ignored: list[str]
    empty: list[str]

    def notes(self, folder: str) -> list[str]:
        """What was passed over, a line each."""
        notes = []
        if self.ignored:
            notes.append(f"{folder}: {len(self.ignored)} files are no images of a class: {listed(self.ignored)}")
        if self.empty:
            notes.append(f"{folder}: {len(self.empty)} folders hold no images: {listed(self.empty)}")
        return notes


def read_classes(folder: str) -> Classes:
    """Every folder below `folder` that holds images, as a class.

    Raises:
        UserError: there is none, one holds images and folders with images, or folders are too deep.
    """
    found = Classes({}, [], [])
    _walk(folder, "", found)
    if not found.paths:
        raise UserError(f"{folder}: no images in class folders in it; each class needs a folder with images")
    return found._replace(paths=dict(sorted(found.paths.items())))


def _walk(folder: str, name: str, found: Classes) -> bool:
    """Adds what lies in and below a folder; whether there are images."""
    if name.count("/") >= DEEPEST:
        raise UserError(f"{folder}: lies more than {DEEPEST} folders deep; does a link lead back to a folder above it?")
    folders, files = visible(folder)
    below = name and name + "/"
    images = [entry.path for entry in files if is_image(entry.name)] if name else []
    if len(images) < len(files):
        found.ignored.extend(below + entry.name for entry in files if not (name and is_image(entry.name)))
    deeper = [entry.name for entry in folders if _walk(entry.path, below + entry.name, found)]
    if images and deeper:
        raise UserError(
            f"{folder}: holds images and folders with images ({listed(deeper)}), so it could be one class or several; "
            "put all images of a class into one folder"
        )
    if images:
        found.paths[name] = images
    elif name and not folders:
        found.empty.append(name)
    return bool(images or deeper)


def unwrapped(folder: str, until: tuple[str, ...] = ()) -> str:
    """The folder that a data set lies in, where an archive was unpacked into folders around it.

    A folder whose only folder is not one of `until` just wraps that.
    """
    for _ in range(DEEPEST):
        folders = visible(folder)[0]
        if len(folders) != 1 or folders[0].name.lower() in until:
            return folder
        folder = folders[0].path
    return folder


def split_folders(data_dir: str) -> dict[str, str]:
    """The folders of train, val and test, those that are there, under any of their usual names.

    Raises:
        UserError: a split has two folders.
    """
    folder = unwrapped(data_dir, sum(SPLIT_NAMES.values(), ()))
    entries = {entry.name.lower(): entry.path for entry in visible(folder)[0]}
    found: dict[str, str] = {}
    for split, names in SPLIT_NAMES.items():
        there = [entries[name] for name in names if name in entries]
        if len(there) > 1:
            both = " and ".join(map(os.path.basename, there))
            raise UserError(f"{folder}: {both} are both there, and {split} is one of them; move the other one away")
        if there:
            found[split] = there[0]
    return found


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 class", "2 classes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def shared_between_splits(data_dir: str) -> list[str]:
    """Classes of one name, and files of the same bytes, that lie in more than one split; a line each.

    What was found is kept beside the prepared images, until a file is another.
    """
    classes = {split: read_classes(folder).paths for split, folder in split_folders(data_dir).items()}
    files = [(split, path) for split, paths in classes.items() for each in paths.values() for path in each]
    key, places = key_of((path for _, path in files), data_dir), cache.paths(data_dir, "shared.cache")
    for place in places:
        if kept := cache.load(place, key):
            return kept[1]["lines"]
    lines = _shared_classes(classes) + _shared_files(files, data_dir)
    cache.store(places, key, np.zeros([1, 1], np.uint8), {"lines": lines})
    return lines


def _shared_classes(classes: dict[str, dict[str, list[str]]]) -> list[str]:
    lines, splits = [], list(classes)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            names = sorted(classes[first].keys() & classes[second].keys())
            if names:
                verb = "is" if len(names) == 1 else "are"
                lines.append(f"{counted(len(names), 'class')} {verb} in {first} and in {second}: {listed(names)}")
    return lines


def _shared_files(files: list[tuple[str, str]], data_dir: str) -> list[str]:
    copies = _copies(files)
    if not copies:
        return []
    pairs = [" = ".join(os.path.relpath(path, data_dir) for path in paths) for paths in copies]
    verb = "is" if len(copies) == 1 else "are"
    return [f"{counted(len(copies), 'image')} {verb} in more than one split, byte for byte: {listed(pairs)}"]


def _copies(files: list[tuple[str, str]]) -> list[list[str]]:
    """Of each group of files with the same bytes in different splits the first path of each split.

    Args:
        files: (split, path) of all.
    """
    for key in (_size, _end, _content):
        groups: dict[object, list[tuple[str, str]]] = {}
        for split, path in files:
            groups.setdefault(key(path), []).append((split, path))
        alike = [group for group in groups.values() if len({split for split, _ in group}) > 1]
        files = [file for group in alike for file in group]
    return [list(dict(reversed(group)).values())[::-1] for group in alike]


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _end(path: str) -> bytes:
    """The last bytes, which differ between nearly all files and are read sooner than all of them."""
    if not os.path.isfile(path):  # a pipe; decoding it names it
        return os.fsencode(path)
    with open(path, "rb", buffering=0) as file:
        file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read(64)


def _content(path: str) -> bytes:
    if not os.path.isfile(path):
        return os.fsencode(path)
    with open(path, "rb", buffering=0) as file:
        return hashlib.blake2b(file.read()).digest()


def images_in(folder: str) -> tuple[list[str], list[str]]:
    """The sorted image paths in one folder, and the names of what else is there.

    Raises:
        UserError: there are no images.
    """
    folders, files = visible(folder)
    images = [entry.path for entry in files if is_image(entry.name)]
    if not images:
        raise UserError(f"{folder}: no images in it; put at least one there")
    return images, [entry.name for entry in folders + files if entry.path not in images]
