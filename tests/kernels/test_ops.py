"""Operations of the inner loop by themselves; in whole networks: test_central_differences.py, test_modes.py."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from maml.kernels import ops

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


def through_an_inner_step(layer, shared, inp, weight, u):
    """The gradient of each of 2 tasks, and the gradients through a step along it, whose start the tasks share.

    Args:
        layer: of the examples and their weight.
        shared: makes of the weight, for both tasks, what `layer` takes and what the inner gradient is taken by.
    """
    with tf.GradientTape(persistent=True) as outer:
        outer.watch((inp, weight))
        with tf.GradientTape() as inner:
            start, own = shared(weight)
            inner.watch(own)
            # The inner layer's gradient, too, runs through a weight that is shared.
            loss = tf.reduce_sum(tf.sin(layer(inp * tf.reduce_sum(layer(inp, start)), start)))
        by_weight = inner.gradient(loss, own)
        after = layer(inp, weight - 0.1 * by_weight)
        value = tf.reduce_sum(tf.cos(after) * u)
    return [by_weight, after, *outer.gradient(value, (inp, weight))]


def in_every_task(weight):
    own = tf.repeat(weight[None], 2, 0)
    return own, own


def with_own_gradient(weight):
    own = tf.zeros([2, *weight.shape], weight.dtype)
    return ops.Shared(weight, own), own


@pytest.mark.parametrize(("examples", "fan_in", "fan_out"), SHAPES)
def test_product_with_a_shared_matrix(examples, fan_in, fan_out):
    rng = np.random.default_rng(0)
    shapes = [2, examples, fan_in], [fan_in, fan_out], [2, examples, fan_out]
    inp, weight, u = (tf.constant(rng.normal(size=shape) / np.sqrt(shape[0])) for shape in shapes)
    np.testing.assert_allclose(ops.product(inp, weight), inp @ weight, rtol=1e-10, atol=1e-12)
    ours = through_an_inner_step(ops.product, with_own_gradient, inp, weight, u)
    plain = through_an_inner_step(tf.matmul, in_every_task, inp, weight, u)
    for value, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


def own_convolutions(inp, kernel, stride):
    """One plain convolution a task."""
    pairs = zip(tf.unstack(inp), tf.unstack(kernel), strict=True)
    return tf.stack([tf.nn.conv2d(images, own, stride, "SAME") for images, own in pairs])


@pytest.mark.parametrize("shared", [in_every_task, with_own_gradient])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize(
    ("channels", "limit"), [(3, 0), (5, 10_000), (5, 0)], ids=["images", "patches", "convolutions"]
)
def test_convolution_and_its_derivatives_are_those_of_one_a_task(monkeypatch, channels, limit, size, stride, shared):
    monkeypatch.setattr(ops, "SMALL_PATCHES", limit)
    rng = np.random.default_rng(0)
    shapes = [2, 3, size, size, channels], [3, 3, channels, 4], [2, 3, -(-size // stride), -(-size // stride), 4]
    inp, kernel, u = (tf.constant(rng.normal(size=shape) / 5) for shape in shapes)
    assert (ops._rows(inp, [3, 3, channels], stride) is None) == (limit == 0 and channels == 5)
    ours, plain = (functools.partial(convolve, stride=stride) for convolve in (ops.conv2d, own_convolutions))
    ours = through_an_inner_step(ours, shared, inp, kernel, u)
    plain = through_an_inner_step(plain, in_every_task, inp, kernel, u)
    for value, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("offset", [0, 1000])
def test_moments_in_one_pass_are_as_exact_as_float32(tasks, offset):
    rng = np.random.default_rng(0)
    x = rng.normal(offset, 1, [tasks, 4, 6, 6, 3]).astype(np.float32)
    x[:, 0] += 3  # the first example, which the sums start from, is not like the others
    mean, variance = ops._moments(tf.constant(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean[:, 0, 0, 0], exact.mean((1, 2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance[:, 0, 0, 0], exact.var((1, 2, 3)), rtol=1e-5)


def standardize_relu_pool(x, shift, window):
    """The same of plain operations, for one task."""
    axes = [0, 1, 2, 3]
    mean, variance = tf.reduce_mean(x, axes), tf.math.reduce_variance(x, axes)
    hidden = tf.nn.relu((x - mean) * tf.math.rsqrt(variance + 0.001) + shift)
    return tf.nn.max_pool2d(hidden[0], window, window, "VALID")[None] if window > 1 else hidden


def images_and_shift(size):
    rng = np.random.default_rng(0)
    return tf.constant(rng.normal(size=[1, 3, size, size, 2])), tf.constant(rng.normal(size=[1, 1, 1, 1, 2]))


@pytest.mark.parametrize(("size", "window"), [(3, 1), (4, 2), (5, 2)])
def test_batch_norm_through_an_inner_step(size, window):
    """With a value that reads what the inner step read, too: the input has two gradients, of which one is second."""
    x, shift = images_and_shift(size)

    def through(function):
        with tf.GradientTape() as outer:
            outer.watch((x, shift))
            with tf.GradientTape() as inner:
                inner.watch((x, shift))
                out = function(x, shift, window=window)
                loss = tf.reduce_sum(tf.sin(out))
            by_x, by_shift = inner.gradient(loss, (x, shift))
            after = function(x - by_x, shift - 0.1 * by_shift, window=window)
            value = tf.reduce_sum(tf.cos(after)) + tf.reduce_sum(out**3)
        return [by_x, by_shift, *outer.gradient(value, (x, shift))]

    ours = through(functools.partial(ops.standardize_relu_pool, epsilon=0.001))
    for value, expected in zip(ours, through(standardize_relu_pool), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("size", "window"), [(3, 1), (4, 2)])
def test_two_derivatives_of_one_batch_norm_can_both_be_differentiated(size, window):
    x, shift = images_and_shift(size)

    def through(function):
        with tf.GradientTape() as outer:
            outer.watch((x, shift))
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                out = function(x, shift, window=window)
                losses = tf.reduce_sum(tf.sin(out)), tf.reduce_sum(out**3)
            one, other = (inner.gradient(loss, x) for loss in losses)
            value = tf.reduce_sum(tf.sin(one) * other) + tf.reduce_sum(tf.cos(out))
        return [one, other, *outer.gradient(value, (x, shift))]

    ours = through(functools.partial(ops.standardize_relu_pool, epsilon=0.001))
    for value, expected in zip(ours, through(standardize_relu_pool), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


def test_of_equal_entries_the_first_gets_the_gradient():
    """Where a picture is saturated, whole windows are equal; the official pooling chooses the first, too."""
    x = np.random.default_rng(0).normal(size=[1, 2, 4, 4, 3])
    x[0, :, :2, :2] = x[0, :, :1, :1]
    x[0, :, 2, 2:] = 3.0
    shift, u = tf.ones([1, 1, 1, 1, 3], tf.float64), np.random.default_rng(1).normal(size=[1, 2, 2, 2, 3])
    gradients = []
    for function in (functools.partial(ops.standardize_relu_pool, epsilon=0.001), standardize_relu_pool):
        with tf.GradientTape() as tape:
            inp = tf.constant(x)
            tape.watch(inp)
            value = tf.reduce_sum(function(inp, shift, window=2) * u)
        gradients.append(tape.gradient(value, inp))
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-11)
