"""Functions of TensorFlow's that no second derivative may go through, exchanged while a user's code is traced."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_TENSORFLOWS = tf.nn.moments, tf.nn.bias_add
_LOCK = threading.Lock()  # several threads may trace at once, as those of several devices do
_inside = 0


@contextlib.contextmanager
def exact_functions() -> Iterator[None]:
    """`tf.nn.moments` and `tf.nn.bias_add` as means and sums, for Keras' layers, too, which call both.

    TensorFlow's moments stop a gradient in the variance, so second derivatives are wrong. Its gradient of a bias fails
    now and then: on a CPU, oneDNN merges that sum with a gradient of the convolution's filter that reads the same
    values. There are several in a second derivative, some depend on the sum, and the merged graph has a cycle.
    """
    global _inside
    with _LOCK:
        _inside += 1
        tf.nn.moments, tf.nn.bias_add = _moments, _bias_add
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                tf.nn.moments, tf.nn.bias_add = _TENSORFLOWS


def _moments(
    x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance over `axes`, as `tf.nn.moments`; `shift` is not used there either."""
    x = tf.convert_to_tensor(x)
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims, name=name)
    return (mean if keepdims else tf.squeeze(mean, axes)), variance


def _bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> tf.Tensor:
    """A bias [channels] added to each position: [batch, …, channels], or [batch, channels, …] with NC…."""
    value, bias = tf.convert_to_tensor(value), tf.convert_to_tensor(bias)
    first = (data_format or "").startswith("NC")
    bias.shape.assert_is_compatible_with([value.shape[1 if first else -1]])
    if first:
        bias = tf.reshape(bias, [-1] + [1] * (value.shape.rank - 2))
    return tf.add(value, bias, name=name)
