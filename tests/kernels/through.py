"""An operation inside an inner step: everything that a meta-gradient asks of it."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def through_an_inner_step(function: Callable, *inputs: tf.Tensor) -> list[tf.Tensor]:
    """First derivatives, and derivatives of a value that reads an inner step along them.

    The value also reads what the inner step read, so that the inputs have two gradients, of which one is second.
    """
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            out = function(*inputs)
            loss = tf.reduce_sum(tf.sin(out))
        first = inner.gradient(loss, inputs)
        after = function(*(tensor - 0.1 * gradient for tensor, gradient in zip(inputs, first, strict=True)))
        value = tf.reduce_sum(tf.cos(after)) + tf.reduce_sum(out**3)
    return [out, *first, *outer.gradient(value, inputs)]


def assert_same_to_second_order(fast: Callable, plain: Callable, *inputs: tf.Tensor, jit: bool | None = None) -> None:
    """Both forms agree, eagerly, or in a graph with or without XLA."""
    run = through_an_inner_step if jit is None else tf.function(through_an_inner_step, jit_compile=jit, autograph=False)
    for value, expected in zip(run(fast, *inputs), through_an_inner_step(plain, *inputs), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)
