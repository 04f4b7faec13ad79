"""What a recognized source of images is made of."""

import os
from typing import NamedTuple

import numpy as np

from maml.tasks.image_files import ImageFile


class Picture(NamedTuple):
    """One image to prepare.

    target: where it goes, such as "train/n01532829/n0153282900000005.jpg".
    source: a file, or uint8 [height, width, 3].
    """

    target: str
    source: ImageFile | np.ndarray


class Found(NamedTuple):
    """A recognized source.

    form: what it is, for people.
    pictures: all of them.
    size: height and width, in pixels, that they are prepared in.
    """

    form: str
    pictures: list[Picture]
    size: int = 84


def prepared_name(path: str) -> str:
    """The name that a prepared image gets: its own, with .png behind it where that is neither JPEG's nor PNG's."""
    name = os.path.basename(path)
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else name + ".png"
