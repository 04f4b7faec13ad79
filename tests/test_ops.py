"""Operations of the inner loop by themselves; in whole networks: test_central_differences.py, test_modes.py."""

import numpy as np
import pytest
import tensorflow as tf

from maml import ops

SHAPES = [  # examples, in, out
    (2, 3, 4),
    (ops.FEW_EXAMPLES, 3, 4),
    (ops.FEW_EXAMPLES + 1, 3, 4),
    (3, 1, 4),
    (3, 4, 1),
    (2, 1 + ops.SMALL_MATRIX // 8, 8),
]


def second_derivatives(product, inp, weight, u):
    """The value, the gradient by `weight`, and the gradients of an inner step's loss, all of 2 tasks."""
    with tf.GradientTape(persistent=True) as outer:
        outer.watch((inp, weight))
        with tf.GradientTape() as inner:
            inner.watch((inp, weight))
            out = product(inp, weight)
            loss = tf.reduce_sum(tf.sin(out))
        by_inp, by_weight = inner.gradient(loss, (inp, weight))
        after = tf.reduce_sum(tf.cos(product(inp - by_inp, weight - 0.1 * by_weight)) * u)
    return [out, by_inp, by_weight, *outer.gradient(after, (inp, weight))]


@pytest.mark.parametrize(("examples", "fan_in", "fan_out"), SHAPES)
def test_product_and_its_derivatives_are_those_of_a_matrix_product(examples, fan_in, fan_out):
    rng = np.random.default_rng(0)
    inp, weight, u = (
        tf.constant(rng.normal(size=shape) / np.sqrt(shape[1]))
        for shape in ([2, examples, fan_in], [2, fan_in, fan_out], [2, examples, fan_out])
    )
    ours, plain = (second_derivatives(product, inp, weight, u) for product in (ops.product, tf.matmul))
    for value, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
