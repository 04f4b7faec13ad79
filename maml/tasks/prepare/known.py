"""Data sets of few-shot learning in the form in which they are handed out, recognized by their files.

CUB-200-2011 (Chen et al., *A Closer Look at Few-shot Classification*, ICLR 2019: of the sorted classes every
second trains, the others are val and test in turn), CIFAR-FS (Bertinetto et al., ICLR 2019), FC100 (Oreshkin et
al., NeurIPS 2018), tieredImageNet (Ren et al., ICLR 2018).
"""

import functools
import io
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from maml.errors import UserError
from maml.tasks import safe_pickle
from maml.tasks.class_folders import SPLITS, read_classes, split_folders, unwrapped
from maml.tasks.image_files import ImageFile, listed, opener, visible
from maml.tasks.prepare.pickles import text
from maml.tasks.prepare.pictures import Found, Picture, prepared_name


class Known(NamedTuple):
    """What a whole data set has.

    classes: of train, val and test.
    images: of all splits; 0: not checked.
    size: height and width that the field trains on.
    """

    name: str
    classes: tuple[int, int, int]
    images: int
    size: int


CUB = Known("CUB-200-2011", (100, 50, 50), 11_788, 84)
CIFAR_FS = Known("CIFAR-FS", (64, 16, 20), 60_000, 32)
FC100 = Known("FC100", (60, 20, 20), 60_000, 32)
TIERED = Known("tieredImageNet", (351, 97, 160), 779_165, 84)


def find(source: str) -> Found | None:
    """The images of a data set that is known, or None.

    Raises:
        UserError: one is recognized, and something of it is missing or damaged.
    """
    if not os.path.isdir(source):
        return None
    for folder in dict.fromkeys((source, unwrapped(source, (*SPLITS, "images")))):
        for recognize in (_cub, _cifar_fs, _arrays, _tiered):
            found = recognize(folder)
            if found:
                return found
    return None


def _checked(known: Known, pictures: list[Picture], where: str) -> Found:
    """Refuses a part of a data set."""
    classes = {tuple(picture.target.split("/")[:2]) for picture in pictures}
    counts = tuple(sum(split == part for part, _ in classes) for split in SPLITS)
    if counts != known.classes or (known.images and len(pictures) != known.images):
        raise UserError(
            f"{where}: looks like {known.name}, and has {counts} classes of train, val and test with "
            f"{len(pictures)} images; {known.classes} and {known.images} are the whole; get what is missing"
        )
    return Found(known.name, pictures, known.size)


def _cub(folder: str) -> Found | None:
    """CUB_200_2011/images/ with folders such as 001.Black_footed_Albatross."""
    images = os.path.join(folder, "images")
    names = [entry.name for entry in visible(images)[0]] if os.path.isdir(images) else []
    if not names or not all(re.fullmatch(r"\d{3}\..+", name) for name in names):
        return None
    splits = ("train", "val", "train", "test")
    classes = read_classes(images).paths
    pictures = [
        Picture(f"{splits[index % 4]}/{name}/{prepared_name(path)}", ImageFile(path, opener(path)))
        for index, (name, paths) in enumerate(classes.items())
        for path in paths
    ]
    return _checked(CUB, pictures, folder)


def _cifar_fs(folder: str) -> Found | None:
    """cifar100/data/<class>/… with cifar100/splits/bertinetto/{train,val,test}.txt."""
    split_files = {split: os.path.join(folder, "splits", "bertinetto", f"{split}.txt") for split in SPLITS}
    data = os.path.join(folder, "data")
    if not os.path.isdir(data) or not all(map(os.path.isfile, split_files.values())):
        return None
    classes = read_classes(data).paths
    pictures = []
    for split, path in split_files.items():
        with open(path, encoding="utf-8") as file:
            names = file.read().split()
        missing = [name for name in names if name not in classes]
        if missing:
            raise UserError(f"{path}: {len(missing)} classes have no folder in {data}: {listed(missing)}")
        pictures += [
            Picture(f"{split}/{name}/{prepared_name(image)}", ImageFile(image, opener(image)))
            for name in names
            for image in classes[name]
        ]
    return _checked(CIFAR_FS, pictures, folder)


def _arrays(folder: str) -> Found | None:
    """FC100_{train,val,test}.pickle or CIFAR_FS_….pickle: `data` uint8 [n, 32, 32, 3] and `labels`."""
    for known, start in ((FC100, "FC100"), (CIFAR_FS, "CIFAR_FS")):
        paths = [os.path.join(folder, f"{start}_{split}.pickle") for split in SPLITS]
        if any(map(os.path.isfile, paths)):
            return _checked(known, list(_of_arrays(paths)), folder)
    return None


def _of_arrays(paths: list[str]) -> Iterator[Picture]:
    for split, path in zip(SPLITS, paths, strict=True):
        values = {text(key): value for key, value in _unpickled(path).items()}
        try:
            images = values["data"].value
            labels = _plain(values["labels"])
        except (KeyError, AttributeError) as error:
            raise UserError(f"{path}: does not hold the arrays data and labels; get it again") from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(labels) != len(images):
            raise UserError(f"{path}: data is {images.dtype} {images.shape}, with {len(labels)} labels; get it again")
        for row, label in enumerate(labels):
            yield Picture(f"{split}/{_folder_name(label)}/{row:06d}.png", images[row])


def _tiered(folder: str) -> Found | None:
    """{train,val,test}_images_png.pkl with …_labels.pkl, or train/, val/ and test/ with class folders."""
    paths = [(os.path.join(folder, f"{s}_images_png.pkl"), os.path.join(folder, f"{s}_labels.pkl")) for s in SPLITS]
    if any(os.path.isfile(images) for images, _ in paths):
        return _checked(TIERED, list(_of_png_pickles(paths)), folder)
    splits = split_folders(folder)
    if set(splits) != set(SPLITS):
        return None
    names = {split: [entry.name for entry in visible(path)[0]] for split, path in splits.items()}
    if tuple(len(names[split]) for split in SPLITS) != TIERED.classes:
        return None
    pictures = [
        Picture(f"{split}/{name}/{prepared_name(path)}", ImageFile(path, opener(path)))
        for split, root in splits.items()
        for name, files in read_classes(root).paths.items()
        for path in files
    ]
    return _checked(TIERED._replace(images=0), pictures, folder)


def _of_png_pickles(paths: list[tuple[str, str]]) -> Iterator[Picture]:
    for split, (image_path, label_path) in zip(SPLITS, paths, strict=True):
        images = _unpickled(image_path)
        labels = {text(key): value for key, value in _unpickled(label_path).items()}
        try:
            numbers = _plain(labels["label_specific"])
            names = [text(name).split(",")[0] for name in _plain(labels.get("label_specific_str", []))]
            rows = images.value if isinstance(images, safe_pickle.Array) else images
            encoded = [_png_bytes(row) for row in rows]
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{image_path}: does not hold PNG images with label_specific beside them ({error})"
            ) from error
        if len(encoded) != len(numbers):
            raise UserError(f"{image_path}: {len(encoded)} images, and {len(numbers)} labels in {label_path}")
        for row, number in enumerate(numbers):
            name = f"{int(number):03d}" + (f"_{_folder_name(names[int(number)])}" if int(number) < len(names) else "")
            source = ImageFile(f"{image_path}[{row}]", functools.partial(io.BytesIO, encoded[row]))
            yield Picture(f"{split}/{name}/{row:06d}.png", source)


def _png_bytes(row: Any) -> memoryview:
    if isinstance(row, safe_pickle.Array):
        row = row.value
    return memoryview(row) if isinstance(row, bytes | memoryview) else np.ascontiguousarray(row, np.uint8).data


def _plain(values: Any) -> list:
    return values.value.ravel().tolist() if isinstance(values, safe_pickle.Array) else list(values)


def _folder_name(label: Any) -> str:
    return re.sub(r"[^\w.-]+", "_", text(label)).strip("._") or "_"


def _unpickled(path: str) -> Any:
    try:
        return safe_pickle.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the files of train, val and test are needed") from error
    except safe_pickle.Refused as error:
        raise UserError(f"{path} is refused: it asks for {error}, and only arrays are read from pickles") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} cannot be read ({type(error).__name__}); get it again") from error
