"""Images of a data set's split, as one uint8 array."""

from typing import NamedTuple

import numpy as np


class ImageSplit(NamedTuple):
    """All images of the classes of a split (train, val or test).

    images: uint8 [total, height * width * channels]; the images of a class stand together,
        classes in the order of `names`. May be memory-mapped.
    counts: int64 [classes], images of each class.
    names: the classes.
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
