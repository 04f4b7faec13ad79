"""Convolutions of one task's examples.

Plain form: tf.nn.conv2d. Fast form, for images and on a GPU: the product of patches with the kernel,

    out[position, filter] = Σ_i patches[position, i] · kernel[i, filter].

An image's patches are the same in every inner step: TensorFlow makes them once for all of them. It is worth 7 % of a
miniImageNet update (measured on an AMD EPYC with AVX2). On a GPU the tasks are computed side by side, each with a
kernel of its own: that is a batch of products, where there is no such convolution (not measured on one yet).
"""

import math

import tensorflow as tf

from maml import machine
from maml.kernels.dense import product

_IMAGE_CHANNELS = 3
_MOST_PATCHES = 5_000_000  # elements of all patches of a batch; more take longer to read than a convolution


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
    if channels > _IMAGE_CHANNELS or examples is None:
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    height, width, fan_in = math.ceil(height / stride), math.ceil(width / stride), math.prod(kernel.shape[:3])
    if examples * height * width * fan_in > _MOST_PATCHES:
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    unit = tf.reshape(tf.eye(fan_in, dtype=inp.dtype), [*kernel.shape[:3], fan_in])
    patches = tf.reshape(tf.nn.conv2d(inp, unit, stride, "SAME"), [-1, fan_in])
    return tf.reshape(patches @ tf.reshape(kernel, [fan_in, -1]), [examples, height, width, kernel.shape[3]])


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
