"""Ravi & Larochelle's classes and lists of miniImageNet."""

import collections
import csv
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from maml.errors import UserError
from maml.tasks.class_folders import SPLITS
from maml.tasks.image_files import ImageFile, listed
from maml.tasks.prepare.pictures import Picture

SIZE = 84
PER_CLASS = 600

_CSV_NAME = re.compile(r"(n\d{8})(\d{8})\.jpe?g")


def _official_classes() -> dict[str, tuple[str, ...]]:
    """The classes of Ravi & Larochelle's train, val and test."""
    with open(os.path.join(os.path.dirname(__file__), "miniimagenet_classes.txt"), encoding="ascii") as file:
        pairs = [line.split() for line in file]
    return {split: tuple(name for part, name in pairs if part == split) for split in SPLITS}


CLASSES = _official_classes()


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


def listed_pictures(lists: dict[str, list[Listed]], source: Callable[[Listed], ImageFile]) -> list[Picture]:
    """A picture for each line of the lists; `source` finds its image."""
    return [Picture(f"{split}/{row.label}/{row.name}", source(row)) for split, rows in lists.items() for row in rows]
