"""Convolutions of one task's examples.

Plain form: tf.nn.conv2d. Fast form, for images, for small feature maps and on a GPU: the product of patches with the
kernel,

    out[position, filter] = Σ_i patches[position, i] · kernel[i, filter].

An image's patches are the same in every inner step: TensorFlow makes them once for all of them. It is worth 7 % of a
miniImageNet update (measured on an AMD EPYC with AVX2). With small feature maps a convolution spends its time on
reordering the kernel: 12 % of an Omniglot 5-way update (AVX-512). On a GPU the tasks are computed side by side, each
with a kernel of its own: that is a batch of products, where there is no such convolution (not measured on one yet).
"""

import functools
import math

import numpy as np
import tensorflow as tf

from maml import machine
from maml.kernels.dense import product

_IMAGE_CHANNELS = 3
_MOST_PATCHES = 5_000_000  # elements of all patches of a batch; more take longer to read than a convolution
_SMALL_PATCHES = 10_000  # elements of an example's patches of feature maps; measured


def conv2d(inp: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """SAME convolution.

    Args:
        inp: [examples, height, width, in].
        kernel: [size, size, in, out].
        stride: in both directions.

    Returns:
        [examples, ceil(height / stride), ceil(width / stride), out].
    """
    if machine.on_gpu():
        return _side_by_side(inp, kernel, stride)
    examples, height, width, channels = inp.shape
    height, width, fan_in = math.ceil(height / stride), math.ceil(width / stride), math.prod(kernel.shape[:3])
    small = height * width * fan_in <= _SMALL_PATCHES
    image = channels <= _IMAGE_CHANNELS
    if examples is None or not (small or image) or examples * height * width * fan_in > _MOST_PATCHES:
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    if image:
        unit = tf.reshape(tf.eye(fan_in, dtype=inp.dtype), [*kernel.shape[:3], fan_in])
        patches = tf.nn.conv2d(inp, unit, stride, "SAME")
    else:
        patches = _gathered_patches(inp, kernel.shape[0], stride)
    patches = tf.reshape(patches, [-1, fan_in])
    return tf.reshape(patches @ tf.reshape(kernel, [fan_in, -1]), [examples, height, width, kernel.shape[3]])


def _gathered_patches(inp: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """Patches of SAME padding: [examples, height, width, channels] → [examples, positions, size · size, channels].

    They are a selection, S x, so that its gradient is Sᵀ dout, and that one's gradient S u again. Both are gathered:
    adding rows to where they came from is slower.
    """
    _, height, width, channels = inp.shape
    seen, sources = _places(height, width, size, stride)

    def rows(cells: tf.Tensor) -> tf.Tensor:  # with a row of zeros behind them
        return tf.pad(tf.reshape(cells, [-1, math.prod(cells.shape[1:-1]), channels]), [[0, 0], [0, 1], [0, 0]])

    @tf.custom_gradient
    def select(x):
        return tf.gather(rows(x), seen, axis=1), put_back

    @tf.custom_gradient
    def put_back(patches):
        total = tf.add_n([tf.gather(rows(patches), source, axis=1) for source in sources])
        return tf.reshape(total, [-1, height, width, channels]), select

    return select(inp)


@functools.cache
def _places(height: int, width: int, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """What each entry of each patch shows, and where each cell is shown.

    Returns:
        seen: [positions, size · size], the cell of an entry; the number of cells in the padding.
        sources: [most, cells], the entries that show a cell, filled up with the number of entries.
    """
    cells = np.arange(height * width).reshape(height, width)
    padding = [_padding(side, size, stride) for side in (height, width)]
    padded = np.pad(cells, padding, constant_values=cells.size)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (size, size))[::stride, ::stride].reshape(-1, size * size)
    shown = [np.flatnonzero(seen == cell) for cell in range(cells.size)]
    sources = np.full([max(map(len, shown)), cells.size], seen.size)
    for cell, entries in enumerate(shown):
        sources[: len(entries), cell] = entries
    return seen, sources


def _side_by_side(inp: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """The convolution by patches, in operations that tf.vectorized_map has for tasks side by side."""
    size, _, channels, filters = kernel.shape
    height, width = (math.ceil(side / stride) for side in inp.shape[1:3])
    patches = tf.reshape(_patches(inp, size, stride), [-1, size * size * channels])
    return tf.reshape(product(patches, tf.reshape(kernel, [-1, filters])), [-1, height, width, filters])


def _patches(inp: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """Patches of SAME padding: [examples, height, width, channels] → [examples, out, out, size · size · channels].

    They are a selection, S x, so that its gradient is Sᵀ dout, and that one's gradient S u again.
    """
    sides = inp.shape[1:3]
    (top, bottom), (left, right) = (_padding(side, size, stride) for side in sides)
    length = [stride * (math.ceil(side / stride) - 1) + 1 for side in sides]
    every = 0b1001  # of examples and channels
    windows = [
        {
            "begin": [0, row, column, 0],
            "end": [0, row + length[0], column + length[1], 0],
            "strides": [1, stride, stride, 1],
            "begin_mask": every,
            "end_mask": every,
        }
        for row in range(size)
        for column in range(size)
    ]

    @tf.custom_gradient
    def select(x):
        padded = tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]])
        return tf.concat([tf.raw_ops.StridedSlice(input=padded, **window) for window in windows], 3), put_back

    @tf.custom_gradient
    def put_back(dout):
        examples = tf.shape(dout)[0] if dout.shape[0] is None else dout.shape[0]
        shape = [examples, top + sides[0] + bottom, left + sides[1] + right, inp.shape[3]]
        parts = zip(windows, tf.split(dout, len(windows), 3), strict=True)
        padded = tf.add_n([tf.raw_ops.StridedSliceGrad(shape=shape, dy=part, **window) for window, part in parts])
        return padded[:, top : top + sides[0], left : left + sides[1]], select

    return select(inp)


def _padding(side: int, size: int, stride: int) -> list[int]:
    """Of SAME: before and behind."""
    total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
    return [total // 2, total - total // 2]
