"""One's own class folders, divided among train, val and test."""

import os
import random

import numpy as np

from maml import commands
from maml.config import Config
from maml.errors import UserError
from maml.tasks.class_folders import SPLITS, counted, read_classes, split_folders, unwrapped
from maml.tasks.image_files import ImageFile, is_image, opener
from maml.tasks.prepare.pictures import Found, Picture, prepared_name


def find(source: str, output: str, splits: str, seed: int, size: int) -> tuple[Found, list[str]]:
    """The images of the class folders in `source`, in splits, and notes on what was understood.

    A source that is split already keeps its splits.

    Raises:
        UserError: there are no class folders, or the division makes no sense.
    """
    if not os.path.isdir(source):
        raise UserError(f"{source}: no such folder; name the folder of your class folders with --source")
    if not output or _inside(output, source):
        raise UserError("--make_splits needs --output, a folder outside --source")
    folders = split_folders(source)
    if set(folders) == set(SPLITS):
        read = {split: read_classes(folder) for split, folder in folders.items()}
        notes = [f"{source} is split already, and keeps its train, val and test"]
        notes += [note for split, classes in read.items() for note in classes.notes(folders[split])]
        return Found("own splits", _pictures({split: read[split].paths for split in SPLITS}), size), notes
    folder = unwrapped(source) if _only_wraps(source) else source
    classes = read_classes(folder)
    names = divide(sorted(classes.paths), splits, seed)
    chosen = {split: {name: classes.paths[name] for name in names[split]} for split in SPLITS}
    images = sum(map(len, classes.paths.values()))
    notes = [f"{source}: {counted(len(classes.paths), 'class')}, {counted(images, 'image')}"]
    return Found("own", _pictures(chosen), size), notes + classes.notes(folder)


def class_sizes(found: Found) -> dict[str, dict[str, int]]:
    """The number of images of each class of each split."""
    sizes: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for picture in found.pictures:
        split, _, rest = picture.target.partition("/")
        name = os.path.dirname(rest)
        sizes[split][name] = sizes[split].get(name, 0) + 1
    return sizes


def training_command(output: str, found: Found) -> str:
    """The command that trains on what is prepared, with smaller tasks where the default ones do not fit.

    Raises:
        UserError: no task fits a split.
    """
    given = {"datasource": "folder", "data_dir": output}
    sizes = class_sizes(found)
    usable = {split: sorted(size for size in of_split.values() if size > 1) for split, of_split in sizes.items()}
    for split, of_split in sizes.items():
        if len(of_split) < 2:
            advice = advised_splits(sum(map(len, sizes.values())))
            raise UserError(f"{split} would have {counted(len(of_split), 'class')}, and a task needs 2: {advice}")
        if len(usable[split]) < 2:
            raise UserError(
                f"{split} would have {counted(len(usable[split]), 'class')} of 2 images or more, and a task needs 2, "
                "with an image for its support and one for its query set: add images"
            )
    ways = min(Config.num_classes, *map(len, usable.values()))
    images = min(of_split[-ways] for of_split in usable.values())  # that so many classes have
    _, shots, queries = Config.from_flags(given).task_size("train")
    flags = [f"--num_classes={ways}"] if ways < Config.num_classes else []
    if images < shots + queries:
        shots = max(1, images // 2)
        flags += [f"--update_batch_size={shots}", f"--query_size={images - shots}"]
    return commands.program("main.py", *(f"--{name}={value}" for name, value in given.items()), *flags)


def advised_splits(classes: int) -> str:
    """What to do where so many classes were divided into too small splits."""
    held_out = max(2, classes // 5)
    train = classes - 2 * held_out
    return f"try --splits {train},{held_out},{held_out}" if train >= 2 else "add classes: at least 6 are needed"


def _inside(output: str, source: str) -> bool:
    try:
        return os.path.commonpath([os.path.realpath(source), os.path.realpath(output)]) == os.path.realpath(source)
    except ValueError:  # on two drives
        return False


def _only_wraps(folder: str) -> bool:
    """Whether the one folder in it holds class folders and no images itself."""
    inner = unwrapped(folder)
    return inner != folder and not any(is_image(entry.name) for entry in os.scandir(inner))


def _pictures(classes: dict[str, dict[str, list[str]]]) -> list[Picture]:
    return [
        Picture(f"{split}/{name}/{prepared_name(path)}", ImageFile(path, opener(path)))
        for split, of_split in classes.items()
        for name, paths in of_split.items()
        for path in paths
    ]


def divide(names: list[str], splits: str, seed: int) -> dict[str, list[str]]:
    """The classes of train, val and test, drawn with `seed`.

    Args:
        names: all classes.
        splits: three counts ("10,2,3") or three fractions that add up to 1 ("0.6,0.2,0.2").
        seed: the same one divides the same classes alike.

    Raises:
        UserError: the numbers make no sense, or leave a split empty.
    """
    try:
        shares = [float(part) for part in splits.split(",")]
    except ValueError:
        shares = []
    fractions = "." in splits
    sensible = len(shares) == len(SPLITS) and all(0 < share < float("inf") for share in shares)
    if not sensible or (fractions and abs(sum(shares) - 1) > 1e-6):
        raise UserError(f"--splits={splits}: must be three counts, or three fractions that add up to 1")
    ends = np.cumsum(shares)
    if fractions:
        ends = np.round(ends * len(names))
    counts = np.diff(ends.astype(int), prepend=0)
    if ends[-1] > len(names) or counts.min() < 1:
        advice = advised_splits(len(names))
        raise UserError(f"--splits={splits}: {len(names)} classes give splits of {counts.tolist()}; {advice}")
    shuffled = random.Random(seed).sample(names, len(names))
    return {
        split: sorted(shuffled[end - count : end])
        for split, end, count in zip(SPLITS, np.cumsum(counts).tolist(), counts.tolist(), strict=True)
    }
