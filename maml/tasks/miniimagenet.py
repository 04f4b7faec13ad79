"""miniImageNet in the forms that people have it, each as a list of images to prepare.

The data set is 100 classes of ImageNet x 600 images, split 64 / 16 / 20 by Ravi & Larochelle
(ICLR 2017). Their train.csv, val.csv and test.csv (columns filename, label) name the images like
n0153282900000005.jpg: the class n01532829 and the number 5. The number is not that of a file of
ImageNet. It counts, from 1, the class's files n01532829_<number>.JPEG of ILSVRC2012 in the order
of their numbers (n01532829_99 before n01532829_100). Its authors never wrote that down; the
public scripts that rebuild the set agree on it, and the lists fit: their numbers run from 1 to
1300, the size of ILSVRC2012's full classes.
"""

import collections
import csv
import functools
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from maml.errors import UserError
from maml.tasks import safe_pickle
from maml.tasks.image_files import ImageFile, check_member, class_images, listed, opener, visible

SIZE = 84
PER_CLASS = 600

_CSV_NAME = re.compile(r"(n\d{8})(\d{8})\.jpe?g")
_ILSVRC_NAME = re.compile(r"(n\d{8})_(\d{1,9})\.jpe?g", re.IGNORECASE)
_MOST_IMAGE_BYTES = 1 << 26
_MOST_ROWS = 1 << 20
_ILSVRC_FOLDERS = ("", "train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
_ILSVRC_TAR = "ILSVRC2012_img_train.tar"
_PICKLES = ("train", "val", "validation", "test")

FORMS = (
    "images/ with train.csv, val.csv and test.csv; ILSVRC2012's training folders or tar with these lists; "
    "mini-imagenet-cache-{train,val,test}.pkl; or train/, val/ and test/ with class folders"
)


def _official_classes() -> dict[str, tuple[str, ...]]:
    """The classes of Ravi & Larochelle's train, val and test."""
    with open(os.path.join(os.path.dirname(__file__), "miniimagenet_classes.txt"), encoding="ascii") as file:
        pairs = [line.split() for line in file]
    return {split: tuple(name for part, name in pairs if part == split) for split in ("train", "val", "test")}


CLASSES = _official_classes()


class Picture(NamedTuple):
    """One image to prepare.

    target: where it goes, such as "train/n01532829/n0153282900000005.jpg".
    source: a file, or uint8 [84, 84, 3].
    """

    target: str
    source: ImageFile | np.ndarray


class Found(NamedTuple):
    """A recognised source.

    form: what it is, for people.
    pictures: all 60,000.
    """

    form: str
    pictures: list[Picture]


def find(source: str, csv_dirs: list[str]) -> Found:
    """Recognises the form of `source` and lists its images.

    Args:
        source: a folder, or ILSVRC2012's training tar.
        csv_dirs: where train.csv, val.csv and test.csv may lie, the preferred place first.

    Raises:
        UserError: nothing is recognised, or it is not the whole of miniImageNet and nothing else.
    """
    if os.path.isfile(source):
        if not source.endswith(".tar"):
            raise UserError(f"{source} is a file; name the folder it lies in: {FORMS}")
        return Found("ILSVRC2012's tar", _from_ilsvrc(source, _tar_classes(source), read_lists(csv_dirs)))
    if not os.path.isdir(source):
        raise UserError(f"{source}: no such folder; name with --source what you have: {FORMS}")
    pickles = _pickles(source)
    if pickles:
        return Found("cached pickles", _from_pickles(pickles))
    images = os.path.join(source, "images")
    if os.path.isdir(images):
        return Found("images/ and lists", _from_images(images, read_lists(csv_dirs)))
    tar = os.path.join(source, _ILSVRC_TAR)
    if os.path.isfile(tar):
        return Found("ILSVRC2012's tar", _from_ilsvrc(tar, _tar_classes(tar), read_lists(csv_dirs)))
    ready = all(os.path.isdir(os.path.join(source, split)) for split in CLASSES)
    for name in _ILSVRC_FOLDERS:
        folder = os.path.join(source, name) if name else source
        classes = _folder_classes(folder)
        # The folder train/ of ready class folders has classes of ImageNet, too, but none of the test classes.
        if any(label in classes for label in (CLASSES["test"] if ready else sum(CLASSES.values(), ()))):
            return Found("ILSVRC2012's folders", _from_ilsvrc(folder, classes, read_lists(csv_dirs)))
    if ready:
        return Found("class folders", _from_class_folders(source))
    folders, files = visible(source)
    names = [entry.name for entry in folders + files]
    raise UserError(f"{source}: holds {listed(names) or 'nothing'}, and one of these is needed: {FORMS}")


def check_complete(counts: dict[str, dict[str, int]], where: str) -> None:
    """Raises UserError unless these are the official classes with 600 images each.

    Args:
        counts: images of each class of each split.
        where: what was looked at, for the message.
    """
    for split, official in CLASSES.items():
        strange = sorted(counts[split].keys() - set(official))
        missing = sorted(set(official) - counts[split].keys())
        if strange:
            raise UserError(
                f"{where}: {split} has {len(strange)} classes that are not Ravi & Larochelle's ({listed(strange)}) and "
                f"lacks {len(missing)} ({listed(missing)}): another data set, or another split, of that name"
            )
        if missing:
            raise UserError(
                f"{where}: {split} lacks {len(missing)} of {len(official)} classes: {listed(missing)}; add them"
            )
    wrong = [f"{name} ({n})" for split in counts.values() for name, n in split.items() if n != PER_CLASS]
    if wrong:
        raise UserError(
            f"{where}: {PER_CLASS} images a class are needed, but {len(wrong)} classes have another number: "
            f"{listed(wrong)}; get the missing images or remove the surplus ones"
        )


# The lists of Ravi & Larochelle


class Listed(NamedTuple):
    """One line of a list: n0153282900000005.jpg is (n01532829, 5)."""

    name: str
    label: str
    position: int


def read_lists(folders: list[str]) -> dict[str, list[Listed]]:
    """The three lists from the first of `folders` that has one.

    Raises:
        UserError: they are missing, malformed, or not those of Ravi & Larochelle.
    """
    folder = next((f for f in folders if any(os.path.isfile(os.path.join(f, s + ".csv")) for s in CLASSES)), "")
    missing = [f"{split}.csv" for split in CLASSES if not os.path.isfile(os.path.join(folder, f"{split}.csv"))]
    if not folder or missing:
        raise UserError(
            f"{folder or ' and '.join(folders)}: no {listed(missing or ['train.csv'])}; Ravi & Larochelle's lists are "
            "needed (see data/README.md), beside the images or in --csv_dir"
        )
    lists = {split: read_list(os.path.join(folder, f"{split}.csv")) for split in CLASSES}
    check_complete({split: collections.Counter(row.label for row in rows) for split, rows in lists.items()}, folder)
    return lists


def read_list(path: str) -> list[Listed]:
    """The lines of a list with the columns filename and label.

    Raises:
        UserError: a column is missing, or a line is malformed or doubled.
    """
    rows: list[Listed] = []
    seen: set[str] = set()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [(column or "").strip().lower() for column in reader.fieldnames or []]
            if not {"filename", "label"} <= set(columns):
                raise UserError(f"{path}: needs the columns filename and label, and has {listed(columns) or 'none'}")
            reader.fieldnames = columns
            for values in reader:
                row = _listed(f"{path} line {reader.line_num}", values["filename"], values["label"])
                if row.name in seen:
                    raise UserError(f"{path} line {reader.line_num}: {row.name} stands there twice")
                seen.add(row.name)
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a list: {error}") from error
    return rows


def _listed(where: str, name: str | None, label: str | None) -> Listed:
    name, label = (name or "").strip(), (label or "").strip()
    match = _CSV_NAME.fullmatch(name)
    if not match or match[1] != label:
        raise UserError(
            f"{where}: {name!r} with label {label!r} is not of the form n0153282900000005.jpg with label n01532829"
        )
    return Listed(name, label, int(match[2]))


def _pictures(lists: dict[str, list[Listed]], source: Callable[[Listed], ImageFile]) -> list[Picture]:
    return [Picture(f"{split}/{row.label}/{row.name}", source(row)) for split, rows in lists.items() for row in rows]


def _from_images(folder: str, lists: dict[str, list[Listed]]) -> list[Picture]:
    """Ravi & Larochelle's own images, named as in their lists."""
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries}
    missing = [row.name for rows in lists.values() for row in rows if row.name not in present]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of the listed images are missing: {listed(missing)}; add them")

    def source(row: Listed) -> ImageFile:
        path = os.path.join(folder, row.name)
        return ImageFile(path, opener(path))

    return _pictures(lists, source)


# ILSVRC2012


def _folder_classes(folder: str) -> dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]]:
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


def _tar_classes(path: str) -> dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]]:
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
        raise UserError(f"{path} is not a readable, uncompressed tar ({error}); get it again or unpack it") from error
    return members


def _slice(path: str, start: int, size: int) -> BinaryIO:
    """`size` bytes of a file from byte `start` on."""
    if size > _MOST_IMAGE_BYTES:
        raise ValueError(f"{size} bytes")
    with open(path, "rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def _from_ilsvrc(
    where: str,
    classes: dict[str, Callable[[], Iterable[tuple[str, ImageFile]]]],
    lists: dict[str, list[Listed]],
) -> list[Picture]:
    """The listed images; a list's number is the image's place in its class, from 1."""
    names = [name for official in CLASSES.values() for name in official]
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
    return _pictures(lists, lambda row: ordered[row.label][row.position - 1])


def _in_order(label: str, images: Iterable[tuple[str, ImageFile]]) -> list[ImageFile]:
    """A class's images by the number in their names.

    Raises:
        UserError: a name is not of the form n01532829_13.JPEG, or two have one number.
    """
    numbered: dict[int, ImageFile] = {}
    strange = []
    for name, image in images:
        match = _ILSVRC_NAME.fullmatch(name)
        if not match or match[1] != label or int(match[2]) in numbered:
            strange.append(image.name)
        else:
            numbered[int(match[2])] = image
    if strange:
        raise UserError(
            f"class {label}: {len(strange)} files are not ILSVRC2012's ({label}_<number>.JPEG, each number once): "
            f"{listed(strange)}; remove them, because the lists count the class's files"
        )
    return [numbered[number] for number in sorted(numbered)]


# Cached pickles


def _pickles(folder: str) -> dict[str, str]:
    """The pickles' paths by their part of the data."""
    paths = {part: os.path.join(folder, f"mini-imagenet-cache-{part}.pkl") for part in _PICKLES}
    return {part: path for part, path in paths.items() if os.path.isfile(path)}


def _from_pickles(paths: dict[str, str]) -> list[Picture]:
    """All classes of the pickles, put into the official splits whichever pickle holds them.

    One widely copied script wrote the test classes into the pickle named val, and the reverse.
    """
    split_of = {name: split for split, official in CLASSES.items() for name in official}
    counts: dict[str, dict[str, int]] = {split: {} for split in CLASSES}
    pictures: list[Picture] = []
    path = next(iter(paths.values()))
    if len({"val" if part == "validation" else part for part in paths}) < len(CLASSES):
        raise UserError(
            f"{os.path.dirname(paths.popitem()[1])}: mini-imagenet-cache-{{train,val,test}}.pkl are needed, "
            "and not all three are there; add the missing ones"
        )
    for path in paths.values():
        for name, images in _pickled_classes(path):
            split = split_of.get(name, "train")
            if name in counts[split]:
                raise UserError(f"{path}: class {name} stands in two pickles; remove one of them")
            counts[split][name] = len(images)
            pictures += [Picture(f"{split}/{name}/{name}{row + 1:08d}.png", image) for row, image in enumerate(images)]
    check_complete(counts, os.path.dirname(path))
    return pictures


def _pickled_classes(path: str) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(name, images uint8 [84, 84, 3]) of the classes of a pickle.

    Raises:
        UserError: it is damaged, hostile, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            values = {_text(key): value for key, value in safe_pickle.load(file).items()}
        images = values["image_data"].value
        classes = {_text(name): _rows(rows) for name, rows in values["class_dict"].items()}
    except safe_pickle.Refused as error:
        raise UserError(f"{path} is refused: it asks for {error}, and only arrays are read from pickles") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(
            f"{path} does not hold image_data and class_dict ({type(error).__name__}: {' '.join(str(error).split())}); "
            "get it again"
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
        raise UserError(f"{path}: image_data is {images.dtype} {images.shape}, and uint8 (n, 84, 84, 3) is needed")
    named = [row for rows in classes.values() for row in rows]
    if len(set(named)) < len(named) or any(not 0 <= row < len(images) for row in named):
        raise UserError(f"{path}: class_dict names rows twice or beyond the {len(images)} of image_data; get it again")
    for name, rows in classes.items():
        yield name, [images[row] for row in rows]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _rows(value: Iterable | safe_pickle.Array) -> list[int]:
    if isinstance(value, range) and len(value) > _MOST_ROWS:  # a few bytes can claim billions of rows
        raise ValueError(f"class_dict holds {value}")
    rows = value.value.tolist() if isinstance(value, safe_pickle.Array) else list(value)
    if not all(isinstance(row, int) for row in rows):
        raise ValueError("class_dict does not hold row numbers")
    return rows


# Class folders


def _from_class_folders(folder: str) -> list[Picture]:
    classes = {split: class_images(os.path.join(folder, split)) for split in CLASSES}
    check_complete(
        {split: {name: len(paths) for name, paths in found.items()} for split, found in classes.items()}, folder
    )
    return [
        Picture(f"{split}/{name}/{os.path.basename(path)}", ImageFile(path, opener(path)))
        for split, found in classes.items()
        for name, paths in found.items()
        for path in paths
    ]
