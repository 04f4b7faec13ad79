"""Convolutions of one task's examples.

Plain form: tf.nn.conv2d. Fast form, for images: the product of their patches with the kernel,

    out[position, filter] = Σ_i patches[position, i] · kernel[i, filter],

because an image's patches are the same in every inner step: TensorFlow makes them once for all of them. It is worth
7 % of a miniImageNet update (measured on an AMD EPYC with AVX2).
"""

import math

import tensorflow as tf

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
    examples, height, width, channels = inp.shape
    if channels > _IMAGE_CHANNELS or examples is None:
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    height, width, fan_in = math.ceil(height / stride), math.ceil(width / stride), math.prod(kernel.shape[:3])
    if examples * height * width * fan_in > _MOST_PATCHES:
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    unit = tf.reshape(tf.eye(fan_in, dtype=inp.dtype), [*kernel.shape[:3], fan_in])
    patches = tf.reshape(tf.nn.conv2d(inp, unit, stride, "SAME"), [-1, fan_in])
    return tf.reshape(patches @ tf.reshape(kernel, [fan_in, -1]), [examples, height, width, kernel.shape[3]])
