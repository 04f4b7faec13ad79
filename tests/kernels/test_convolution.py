"""Convolutions as products of patches are convolutions, to second order."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from maml import machine
from maml.kernels import convolution
from tests.kernels.through import assert_same_to_second_order


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize(("channels", "most"), [(1, 10_000), (3, 10_000), (3, 10), (5, 10_000), (5, 10)])
def test_both_forms_agree_through_an_inner_step(monkeypatch, channels, most, size, stride):
    """Gray and color images, and small feature maps; those whose patches are too many."""
    monkeypatch.setattr(convolution, "_MOST_PATCHES", most)
    rng = np.random.default_rng(0)
    inp, kernel = (
        tf.constant(rng.normal(size=shape) / 5) for shape in ([3, size, size, channels], [3, 3, channels, 4])
    )
    fast = functools.partial(convolution.conv2d, stride=stride)
    assert_same_to_second_order(fast, lambda x, k: tf.nn.conv2d(x, k, stride, "SAME"), inp, kernel)


@pytest.mark.parametrize("jit", [None, True])
@pytest.mark.parametrize(("stride", "size", "kernel_size"), [(1, 5, 3), (2, 4, 3), (2, 5, 3), (1, 4, 2), (2, 7, 1)])
def test_on_a_gpu_it_is_a_product_of_patches(monkeypatch, stride, size, kernel_size, jit):
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    rng = np.random.default_rng(0)
    inp, kernel = (
        tf.constant(rng.normal(size=shape) / 5) for shape in ([3, size, size + 1, 5], [kernel_size, kernel_size, 5, 4])
    )
    fast = functools.partial(convolution.conv2d, stride=stride)
    assert_same_to_second_order(fast, lambda x, k: tf.nn.conv2d(x, k, stride, "SAME"), inp, kernel, jit=jit)


def test_on_a_gpu_the_number_of_examples_may_be_unknown(monkeypatch):
    """As in an exported model."""
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    rng = np.random.default_rng(0)
    inp, kernel = (tf.constant(rng.normal(size=shape)) for shape in ([3, 4, 5, 5], [3, 3, 5, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, *inp.shape[1:]], inp.dtype)], autograph=False)
    def gradients(inp):
        with tf.GradientTape() as tape:
            tape.watch([inp, kernel])
            out = tf.reduce_sum(tf.sin(convolution.conv2d(inp, kernel, 2)))
        return tape.gradient(out, [inp, kernel])

    with tf.GradientTape() as tape:
        tape.watch([inp, kernel])
        out = tf.reduce_sum(tf.sin(tf.nn.conv2d(inp, kernel, 2, "SAME")))
    for value, expected in zip(gradients(inp), tape.gradient(out, [inp, kernel]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("size", "channels", "patches"), [(40, 3, True), (4, 4, True), (40, 4, False)])
def test_images_and_small_feature_maps_become_patches(size, channels, patches):
    graph = tf.function(functools.partial(convolution.conv2d, stride=1)).get_concrete_function(
        tf.TensorSpec([2, size, size, channels]), tf.TensorSpec([3, 3, channels, 4])
    )
    assert ("MatMul" in {op.type for op in graph.graph.get_operations()}) == patches
