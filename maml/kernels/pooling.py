"""2×2 max pooling, exact to second order with and without XLA."""

import functools

import tensorflow as tf


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID: [examples, height, width, channels] → [examples, height // 2, width // 2, channels].

    Not tf.nn.max_pool2d, whose second derivative XLA rounds to 8 bits.
    """
    return functools.reduce(tf.maximum, windows(inp))


def windows(inp: tf.Tensor) -> list[tf.Tensor]:
    """The four members of every window, [examples, height // 2, width // 2, channels] each; an odd rest is dropped."""
    _, height, width, channels = inp.shape
    height, width = height // 2, width // 2
    cells = tf.reshape(inp[:, : 2 * height, : 2 * width], [-1, height, 2, width, 2, channels])
    return [cells[:, :, i, :, j] for i in range(2) for j in range(2)]
