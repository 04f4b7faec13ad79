"""miniImageNet as the pickles that circulate: arrays, read without running any code in them."""

import os
from collections.abc import Iterable, Iterator

import numpy as np

from maml.errors import UserError, one_line
from maml.tasks import safe_pickle
from maml.tasks.prepare import lists
from maml.tasks.prepare.pictures import Picture

_MOST_ROWS = 1 << 20
_PICKLES = ("train", "val", "validation", "test")


def found_in(folder: str) -> dict[str, str]:
    """The pickles' paths by their part of the data."""
    paths = {part: os.path.join(folder, f"mini-imagenet-cache-{part}.pkl") for part in _PICKLES}
    return {part: path for part, path in paths.items() if os.path.isfile(path)}


def pictures_of(paths: dict[str, str]) -> list[Picture]:
    """All classes of the pickles, put into the official splits whichever pickle holds them.

    One widely copied script wrote the test classes into the pickle named val, and the reverse.
    """
    split_of = {name: split for split, official in lists.CLASSES.items() for name in official}
    counts: dict[str, dict[str, int]] = {split: {} for split in lists.CLASSES}
    pictures: list[Picture] = []
    path = next(iter(paths.values()))
    if len({"val" if part == "validation" else part for part in paths}) < len(lists.CLASSES):
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
    lists.check_complete(counts, os.path.dirname(path))
    return pictures


def _pickled_classes(path: str) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(name, images uint8 [84, 84, 3]) of the classes of a pickle.

    Raises:
        UserError: it is damaged, hostile, or holds something else.
    """
    try:
        values = {text(key): value for key, value in safe_pickle.load(path).items()}
        images = values["image_data"].value
        classes = {text(name): _rows(rows) for name, rows in values["class_dict"].items()}
    except safe_pickle.Refused as error:
        raise UserError(f"{path} is refused: it asks for {error}, and only arrays are read from pickles") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(
            f"{path} does not hold image_data and class_dict ({one_line(error, named=True)}); get it again"
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (lists.SIZE, lists.SIZE, 3):
        raise UserError(f"{path}: image_data is {images.dtype} {images.shape}, and uint8 (n, 84, 84, 3) is needed")
    named = [row for rows in classes.values() for row in rows]
    if len(set(named)) < len(named) or any(not 0 <= row < len(images) for row in named):
        raise UserError(f"{path}: class_dict names rows twice or beyond the {len(images)} of image_data; get it again")
    for name, rows in classes.items():
        yield name, [images[row] for row in rows]


def text(value: str | bytes) -> str:
    """A name of a pickle, which Python 2 wrote as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _rows(value: Iterable | safe_pickle.Array) -> list[int]:
    if isinstance(value, range) and len(value) > _MOST_ROWS:  # a few bytes can claim billions of rows
        raise ValueError(f"class_dict holds {value}")
    rows = value.value.tolist() if isinstance(value, safe_pickle.Array) else list(value)
    if not all(isinstance(row, int) for row in rows):
        raise ValueError("class_dict does not hold row numbers")
    return rows
