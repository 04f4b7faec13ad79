"""The images of one split of a data set, and whether they are enough for the tasks asked for."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from maml.errors import UserError
from maml.machine import physical_memory
from maml.tasks.image_files import listed


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


class Source(NamedTuple):
    """What a split is made of.

    key: changes when the files do; cheap to compute.
    build: reads and prepares the images, into the rows that it is given or into new ones.
    shape: of the images, if they are many: [total, height * width * channels].
    counts, names: of the split, where the shape is known.
    name: for messages.
    """

    key: str
    build: Callable[[np.ndarray | None], ImageSplit]
    shape: tuple[int, int] | None = None
    counts: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    name: str = ""


def check_fits(source: Source) -> None:
    """Raises UserError if images that cannot be prepared on disk do not fit into memory."""
    there, size = physical_memory(), math.prod(source.shape or (0,))
    if there is not None and size > there:
        raise UserError(
            f"{source.name}: its images take {size / 2**30:,.1f} GiB, they cannot be kept on disk, and this machine "
            f"has {there / 2**30:,.1f} GiB of memory: name a folder with room in MAML_CACHE_DIR, lower --image_size "
            "or --channels, or train on fewer images"
        )


def too_small(split: ImageSplit, name: str, num_classes: int, shots: int, queries: int) -> list[str]:
    """The classes that have too few images for tasks of `num_classes` classes x (shots + queries) images.

    Args:
        split: the images.
        name: the split's name for the message, such as "omniglot val".
        num_classes: classes of a task.
        shots: support images a class.
        queries: query images a class.

    Raises:
        UserError: there are not enough other classes.
    """
    small = [str(c) for c, count in zip(split.names, split.counts, strict=True) if count < shots + queries]
    if len(split.names) - len(small) >= num_classes:
        return small
    if len(split.names) < num_classes:
        raise UserError(
            f"{name} has {len(split.names)} classes, and --num_classes={num_classes} needs {num_classes}: "
            "lower --num_classes"
        )
    sizes = np.sort(split.counts)
    smallest = [f"{split.names[i]} ({split.counts[i]})" for i in np.argsort(split.counts, kind="stable")]
    enough = int(sizes[-num_classes])  # images that so many classes have
    raise UserError(
        f"{name} has {len(split.names) - len(small)} classes with the {shots + queries} images that {shots}-shot with "
        f"{queries} queries needs, and a task takes {num_classes}: {_way_out(enough, shots, queries)}. "
        f"The smallest classes: {listed(smallest)}"
    )


def _way_out(enough: int, shots: int, queries: int) -> str:
    """The flags with which classes of `enough` images would do."""
    if enough > shots:
        return f"--query_size={enough - shots} would do (it is {queries})"
    if enough > 1:
        fewer = max(1, enough // 2)
        return f"--update_batch_size={fewer} --query_size={enough - fewer} would do (they are {shots} and {queries})"
    return "add images, at least two a class"


def content_of(images: np.ndarray, counts: np.ndarray, names: tuple[str, ...]) -> str:
    """A hash of a split's pixels, classes and their sizes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([images.shape[1:], counts.tolist(), names]).encode())
    for start in range(0, len(images), 1024):
        digest.update(images[start : start + 1024].tobytes())
    return digest.hexdigest()


def key_of(paths: Iterable[str], folder: str) -> str:
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
