"""Pooling is TensorFlow's, to second order, with XLA too."""

import numpy as np
import pytest
import tensorflow as tf

from maml.kernels.pooling import max_pool
from tests.kernels.through import assert_same_to_second_order


@pytest.mark.parametrize("jit", [None, True])
@pytest.mark.parametrize("size", [4, 5])
def test_max_pool(size, jit):
    inp = tf.constant(np.random.default_rng(0).normal(size=[3, size, size + 1, 2]))
    assert_same_to_second_order(max_pool, lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), inp, jit=jit)
