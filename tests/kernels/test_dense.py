"""Products of a few examples with a small matrix are products, to second order."""

import numpy as np
import pytest
import tensorflow as tf

from maml.kernels.dense import product
from tests.kernels.through import assert_same_to_second_order


@pytest.mark.parametrize("jit", [None, True])
@pytest.mark.parametrize(
    ("examples", "fan_in", "fan_out"), [(10, 40, 40), (10, 1, 40), (10, 40, 1), (30, 7, 5), (5, 120, 110)]
)
def test_the_product_is_that_of_matrices(examples, fan_in, fan_out, jit):
    rng = np.random.default_rng(0)
    inp, weight = (tf.constant(rng.normal(size=shape) / 5) for shape in ([examples, fan_in], [fan_in, fan_out]))
    assert_same_to_second_order(lambda x, w: product(x, w), tf.matmul, inp, weight, jit=jit)
