"""Products of a few examples with a small matrix are products, to second order."""

import numpy as np
import pytest
import tensorflow as tf

from maml import machine
from maml.kernels import dense
from tests.kernels.through import assert_same_to_second_order


@pytest.mark.parametrize("jit", [None, True])
@pytest.mark.parametrize(
    ("examples", "fan_in", "fan_out"), [(10, 40, 40), (10, 1, 40), (10, 40, 1), (30, 7, 5), (5, 120, 110)]
)
def test_the_product_is_that_of_matrices(examples, fan_in, fan_out, jit):
    same_as_of_matrices(examples, fan_in, fan_out, jit)


@pytest.mark.parametrize("examples", [12, 13])
def test_a_gpu_sums_over_many_examples_in_parts(examples, monkeypatch):
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    monkeypatch.setattr(dense, "_FEW_EXAMPLES", 0)
    monkeypatch.setattr(dense, "_MANY_EXAMPLES", 5)
    same_as_of_matrices(examples, 7, 5)


@pytest.mark.parametrize("jit", [None, True])
@pytest.mark.parametrize("shape", [[3, 4], [5], [2, 3, 2, 2]])
def test_a_number_in_all_places(shape, jit):
    number, other = tf.constant(0.7, tf.float64), tf.constant(np.random.default_rng(0).normal(size=shape))

    def by(fill):
        return lambda number, other: tf.sin(fill(number) * other) * fill(number * number)

    ours, plain = by(lambda number: dense.filled(number, other.shape)), by(lambda number: tf.fill(shape, number))
    assert_same_to_second_order(ours, plain, number, other, jit=jit)


def same_as_of_matrices(examples, fan_in, fan_out, jit=None):
    rng = np.random.default_rng(0)
    inp, weight = (tf.constant(rng.normal(size=shape) / 5) for shape in ([examples, fan_in], [fan_in, fan_out]))
    assert_same_to_second_order(lambda x, w: dense.product(x, w), tf.matmul, inp, weight, jit=jit)
