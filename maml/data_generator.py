"""Batched episodes, each a pure function of (seed, split, index).

Sampling is stateless and runs wherever the computation runs (inside a compiled loop, too), so
a training can be repeated, and resumed at any iteration, without any generator state.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from maml import machine
from maml.config import Config
from maml.errors import UserError
from maml.tasks import augmentation
from maml.tasks.class_folders import SPLITS
from maml.tasks.images import channel_statistics, load_split
from maml.tasks.split import ImageSplit, too_small

AMPLITUDE_RANGE = (0.1, 5.0)
PHASE_RANGE = (0.0, np.pi)
INPUT_RANGE = (-5.0, 5.0)


class Episodes(NamedTuple):
    """A batch of B tasks: N-way K-shot with Q query examples a class (sinusoid: K and Q points).

    One task, as a learner sees it, is the same without the leading axis.

    Attributes:
        inputa: [B, N·K, dim_input], support set; images are flat, in [0, 1].
        labela: [B, N·K, dim_output], one-hot for classification.
        inputb: [B, N·Q, dim_input], query set.
        labelb: [B, N·Q, dim_output].

    The k-th examples of all classes stand together, each such group in its own random order.
    """

    inputa: tf.Tensor
    labela: tf.Tensor
    inputb: tf.Tensor
    labelb: tf.Tensor

    def tasks(self) -> list["Episodes"]:
        """The tasks one by one, without the leading axis."""
        count = tf.nest.flatten(self)[0].shape[0]
        return [tf.nest.map_structure(lambda tensor: tensor[i], self) for i in range(count)]  # noqa: B023


class Part(NamedTuple):
    """One of several parts of a batch of tasks, all of them as large: `number`, from 0, of so many `parts`."""

    number: int | tf.Tensor
    parts: int

    def piece(self, number: int | tf.Tensor, pieces: int) -> "Part":
        """One of as many equal pieces of this part, from 0."""
        return Part(self.number * pieces + number, self.parts * pieces)

    def of(self, batch: tf.Tensor) -> tf.Tensor:
        """The rows of this part: [parts · n, …] → [n, …]."""
        return batch if self.parts == 1 else tf.reshape(batch, [self.parts, -1, *batch.shape[1:]])[self.number]


WHOLE = Part(0, 1)


class TaskSource(Protocol):
    """What training and testing draw their tasks from."""

    fingerprint: dict[str, str]

    def episodes(self, split: str, index: Any, meta_batch_size: int, part: Part = WHOLE) -> Episodes:
        """The `index`-th batch of tasks of a split, or a part of it: the same tasks, whatever the parts."""


class DataGenerator:
    """Samples episodes of a data source."""

    def __init__(self, config: Config, splits: tuple[str, ...] = SPLITS, load: Callable[..., ImageSplit] = load_split):
        """Loads the images of `splits` (nothing for the sinusoid); `self.config` holds what is read from them.

        Args:
            load: what reads a split's images.

        Raises:
            UserError: data is missing, broken, or too small for the tasks asked for.
        """
        self.config = config
        self.tables: dict[str, ImageTable] = {}  # each split's images
        self.left_out: dict[str, list[str]] = {}  # classes of each split that are too small for its tasks
        self.fingerprint: dict[str, str] = {}  # of the content of each split's images
        if config.classification:
            size, channels = config.image_shape
            for name in splits:
                split = load(
                    config.datasource,
                    config.data_dir,
                    name,
                    image_size=size,
                    channels=channels,
                    resize=config.omniglot_resize,
                    conventions=config.conventions,
                )
                left_out = too_small(split, f"{config.datasource} {name}", *config.task_size(name))
                if left_out:
                    self.left_out[name] = left_out
                self.tables[name] = ImageTable.of(split, sum(config.task_size(name)[1:]), channels)
                self.fingerprint[name] = split.content
                if name == "train" and config.normalize == "auto":
                    self.config = config.replace(normalize=channel_statistics(split, channels))

    def episodes(self, split: str, index: Any, meta_batch_size: int, part: Part = WHOLE) -> Episodes:
        """The `index`-th batch of tasks of a split, or a part of it; `index` is an int or an integer tensor [].

        Raises:
            UserError: there is no such split, or it was not loaded.
        """
        config = self.config
        loaded = tuple(self.tables) if config.classification else SPLITS
        if split not in loaded:
            raise UserError(f"split={split!r}: must be one of {', '.join(loaded)}")
        key = tf.random.experimental.stateless_fold_in([config.seed, SPLITS.index(split)], index, alg="philox")
        classes, shots, queries = config.task_size(split)
        if config.classification:
            episodes = image_episodes(
                key,
                self.tables[split],
                meta_batch_size,
                classes,
                shots,
                queries,
                turn=config.turns_classes(split),
                change=self._augmentation if split == "train" else None,
                part=part,
            )
        else:
            whole = sinusoid_episodes(key, meta_batch_size, shots, queries, config.baseline == "oracle")
            episodes = Episodes(*map(part.of, whole))
        return Episodes(*(tf.cast(tensor, config.dtype) for tensor in episodes))

    @property
    def _augmentation(self) -> Callable[[tf.Tensor, tf.Tensor, Part], tf.Tensor] | None:
        """What changes training images at random; None if nothing does.

        A function of a key, uint8 [..., pixels], and the part of the batch that they are.
        """
        config = self.config
        if not (config.flip or config.crop):
            return None
        size, channels = config.image_shape

        def change(key: tf.Tensor, flat: tf.Tensor, part: Part) -> tf.Tensor:
            images = tf.reshape(flat, [-1, size, size, channels])
            keys = tf.unstack(tf.random.split(key, 2, alg="philox"), 2)
            count = images.shape[0] * part.parts
            if config.flip:
                images = augmentation.mirrored(images, part.of(_random_bits(keys[0], [count], 1)) == 1)
            if config.crop:
                place = part.of(_uniform(keys[1], [count, 2], 0, 2 * config.crop + 1))
                images = augmentation.cropped(images, tf.cast(place, tf.int32), config.crop)
            return tf.reshape(images, flat.shape)

        return change


def _random_bits(key: tf.Tensor, shape: list, bits: int) -> tf.Tensor:
    """Uniform integers below 2^bits, uint32.

    XLA derives other random floats from a seed than TensorFlow's own kernels do; of the integers
    both make the same. They are made two at once, as 64 bits: Philox makes 128 bits at once, and XLA
    does so for each number again.
    """
    count = math.prod(shape)
    pairs = tf.random.stateless_uniform([(count + 1) // 2], key, None, None, tf.int64, alg="philox")
    whole = tf.reshape(tf.reshape(tf.bitcast(pairs, tf.uint32), [-1])[:count], shape)
    return tf.bitwise.right_shift(whole, tf.constant(32 - bits, tf.uint32))


def _uniform(key: tf.Tensor, shape: list, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Uniform floats in [low, high), float32 with 24 random bits."""
    return low + (high - low) * (tf.cast(_random_bits(key, shape, 24), tf.float32) * 2.0**-24)


def random_orders(key: tf.Tensor, shape: list) -> tf.Tensor:
    """Random orders of the numbers below the last dimension, int32 of this shape."""
    return tf.argsort(_uniform(key, shape))


def sinusoid_episodes(key: tf.Tensor, tasks: int, shots: int, queries: int, oracle: bool) -> Episodes:
    """Points of y = A·sin(x − phase) with A ~ U[0.1, 5], phase ~ U[0, π], x ~ U[−5, 5].

    With `oracle` the input of a point is (x, A, phase).
    """
    keys = tf.unstack(tf.random.split(key, 3, alg="philox"), 3)
    amplitude = _uniform(keys[0], [tasks, 1, 1], *AMPLITUDE_RANGE)
    phase = _uniform(keys[1], [tasks, 1, 1], *PHASE_RANGE)
    x = _uniform(keys[2], [tasks, shots + queries, 1], *INPUT_RANGE)
    y = amplitude * tf.sin(x - phase)
    if oracle:
        x = tf.concat([x, amplitude + tf.zeros_like(x), phase + tf.zeros_like(x)], 2)
    return Episodes(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def resident(images: np.ndarray) -> tf.Tensor:
    """Pixels as a tensor, uint8 [rows, columns].

    On a processor those of a memory-mapped file stay where they are: nothing is copied, the memory is that of the
    system's file cache, and the file is read ahead of its first use.
    """
    if not isinstance(images, np.memmap) or machine.on_gpu():
        return tf.constant(images)
    with contextlib.suppress(OSError, AttributeError), open(str(images.filename), "rb") as file:  # not every system can
        os.posix_fadvise(file.fileno(), images.offset, images.nbytes, os.POSIX_FADV_WILLNEED)
    pixels = np.asarray(images).view()
    pixels.flags.writeable = True  # or TensorFlow would not take it; it does not write
    return tf.experimental.dlpack.from_dlpack(pixels.__dlpack__())


class ImageTable(NamedTuple):
    """A split on the device.

    images: uint8 [total, height · width · channels], a class's images together.
    first, counts: int32 [classes], a class's first row and number of images.
    most: the largest count.
    channels: of the images.
    """

    images: tf.Tensor
    first: tf.Tensor
    counts: tf.Tensor
    most: int
    channels: int = 1

    @classmethod
    def of(cls, split: ImageSplit, least: int = 1, channels: int = 1) -> "ImageTable":
        """The classes of `least` images or more."""
        enough = split.counts >= least
        first, counts = (np.cumsum(split.counts) - split.counts)[enough], split.counts[enough]
        return cls(
            resident(split.images),
            tf.constant(first, tf.int32),
            tf.constant(counts, tf.int32),
            int(counts.max()),
            channels,
        )


def image_episodes(
    key: tf.Tensor,
    table: ImageTable,
    tasks: int,
    num_classes: int,
    shots: int,
    queries: int,
    turn: bool = False,
    change: Callable[[tf.Tensor, tf.Tensor, Part], tf.Tensor] | None = None,
    part: Part = WHOLE,
) -> Episodes:
    """N-way tasks: classes, and images of a class, are drawn without replacement.

    Args:
        turn: each class of a task, square images, is turned by 0, 90, 180 or 270 degrees, all its
            images alike, as the official code does for Omniglot in training and in testing.
        change: see `DataGenerator._augmentation`.
        part: of the batch; its images alone are read.
    """
    keys = tf.unstack(tf.random.split(key, 4, alg="philox"), 4)
    per_class = shots + queries

    # The order of random scores is a random order: its first entries are draws without replacement.
    scores = _uniform(keys[0], [tasks, table.first.shape[0]])
    classes = tf.math.top_k(scores, num_classes).indices  # [tasks, N]
    scores = _uniform(keys[1], [tasks, num_classes, table.most])
    exists = tf.range(table.most) < tf.gather(table.counts, classes)[..., None]
    drawn = tf.math.top_k(tf.where(exists, scores, -1.0), per_class).indices  # [tasks, N, K + Q]
    rows = tf.gather(table.first, classes)[..., None] + drawn

    # Labels follow the shuffle: row (k, j) holds the k-th image of class order[k, j].
    order = random_orders(keys[2], [tasks, per_class, num_classes])  # [tasks, K + Q, N]
    rows, order = part.of(tf.gather(tf.transpose(rows, [0, 2, 1]), order, batch_dims=2)), part.of(order)
    images = tf.gather(table.images, rows)  # [tasks, K + Q, N, pixels]
    if change:
        images = change(tf.random.experimental.stateless_fold_in(keys[3], 1, alg="philox"), images, part)
    quarters = None
    whole, tasks = tasks, tasks // part.parts
    if turn:
        of_class = tf.cast(part.of(_random_bits(keys[3], [whole, num_classes], 2)), tf.int32)
        quarters = tf.reshape(tf.gather(of_class, tf.reshape(order, [tasks, -1]), batch_dims=1), order.shape)

    inputs = tf.reshape(
        _as_inputs(images, quarters, table.channels), [tasks, per_class * num_classes, images.shape[-1]]
    )
    labels = tf.one_hot(tf.reshape(order, [tasks, per_class * num_classes]), num_classes)
    support = shots * num_classes
    return Episodes(inputs[:, :support], labels[:, :support], inputs[:, support:], labels[:, support:])


@functools.partial(tf.function, jit_compile=True, autograph=False)  # one pass over the bytes
def _as_inputs(images: tf.Tensor, quarters: tf.Tensor | None, channels: int = 1) -> tf.Tensor:
    """Bytes [..., pixels] as floats in [0, 1].

    Square images are turned by `quarters` [...], 0 to 3 quarter turns, as numpy.rot90 turns.
    """
    if quarters is not None:
        side = math.isqrt(images.shape[-1] // channels)
        as_is = tf.reshape(images, [*images.shape[:-1], side, side, channels])
        rank = len(as_is.shape)
        flipped = tf.transpose(as_is, [*range(rank - 3), rank - 2, rank - 3, rank - 1])
        turns = [as_is, flipped[..., ::-1, :, :], as_is[..., ::-1, ::-1, :], flipped[..., ::-1, :]]
        turned = turns[0]
        for count in range(1, 4):
            turned = tf.where(quarters[..., None, None, None] == count, turns[count], turned)
        images = tf.reshape(turned, images.shape)
    return tf.cast(images, tf.float32) / 255.0
