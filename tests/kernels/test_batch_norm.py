"""The closed forms of batch-norm, with pooling and without, are their plain forms, to second order."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from maml.kernels import batch_norm
from tests.kernels.through import assert_same_to_second_order

fast = functools.partial(batch_norm._closed_form, epsilon=0.001)
plain = functools.partial(batch_norm.plain, epsilon=0.001)
SCALE = tf.constant([0.7, -1.3], tf.float64)
SHIFT = tf.constant([0.4, -0.2], tf.float64)
SIGN = tf.constant([1.0, -1.0], tf.float64)
# Compiled functions that every second derivative needs.
EXPECTED = {"_closed_form": {"_sums_of_distance", "_sums_of_product", "_ddx"}, "_standardized": {"_project", "_bend"}}


def images(height, width):
    return tf.constant(np.random.default_rng(0).normal(size=[3, height, width, 2]))


@pytest.mark.parametrize("sign", [None, SIGN], ids=["scales above zero", "one below zero"])
@pytest.mark.parametrize("jit", [None, False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 4), (7, 5)])
def test_both_forms_agree_through_an_inner_step(height, width, jit, sign):
    fast_form, plain_form = (functools.partial(form, sign=sign) for form in (fast, plain))
    assert_same_to_second_order(fast_form, plain_form, images(height, width), jit=jit)


def plain_relu(x, shift):
    return tf.nn.relu(batch_norm.plain(x, 0.001) + shift)


@pytest.mark.parametrize("jit", [None, False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 5)])
def test_both_forms_with_relu_agree_through_an_inner_step(height, width, jit):
    """By x and by the shift, one of which closes a part of the ReLUs."""

    def fast_relu(x, shift):
        return batch_norm._closed_form(x, 0.001, shift=shift)

    assert 0 < np.mean(plain_relu(images(height, width), SHIFT - 0.5).numpy() == 0) < 1
    assert_same_to_second_order(fast_relu, plain_relu, images(height, width), SHIFT - 0.5, jit=jit)


@pytest.mark.parametrize("jit", [None, False, True])
def test_both_forms_without_pooling_agree_through_an_inner_step(jit):
    fast_form = functools.partial(batch_norm._standardized, epsilon=0.001)
    plain_form = functools.partial(batch_norm.standardize, axes=[0, 1, 2], epsilon=0.001)
    assert_same_to_second_order(fast_form, plain_form, images(5, 4), jit=jit)


def test_without_pooling_it_rounds_no_more_than_the_plain_form():
    """In float32, with a mean of 20 standard deviations."""
    x = tf.constant(np.random.default_rng(0).normal(1, 0.05, [20, 7, 7, 64]), tf.float32)
    exact = batch_norm.standardize(tf.cast(x, tf.float64), [0, 1, 2], 0.001)

    def error(y):
        return np.abs(y.numpy() - exact.numpy()).max()

    assert error(batch_norm._standardized(x, 0.001)) <= 1.5 * error(batch_norm.standardize(x, [0, 1, 2], 0.001))


@pytest.mark.parametrize(
    "form",
    [
        batch_norm.batch_norm,
        batch_norm.batch_norm_pool,
        functools.partial(batch_norm.batch_norm_pool_relu, shift=SHIFT),
    ],
    ids=["alone", "pooled", "with ReLU"],
)
def test_the_closed_form_is_taken_in_a_graph_of_known_shapes_only(form):
    x = images(4, 4)

    def fused(signature):
        def gradient(x):
            return tf.gradients(form(x, epsilon=0.001), x)

        graph = tf.function(gradient, autograph=False)
        names = [op.type for op in graph.get_concrete_function(signature).graph.get_operations()]
        return any("PartitionedCall" in name for name in names)

    assert fused(tf.TensorSpec(x.shape, x.dtype)) and not fused(tf.TensorSpec([None, *x.shape[1:]], x.dtype))


def pooled_before(x, scale, shift):
    """Ours: pooled, then scaled and shifted."""
    return tf.nn.leaky_relu(batch_norm.batch_norm_pool(x, 0.001, scale) * scale + shift, 0.01)


def pooled_behind(x, scale, shift):
    """Statistics by tf.math.reduce_variance, pooling by tf.nn.max_pool2d, in the order of the layers."""
    mean, variance = tf.reduce_mean(x, [0, 1, 2]), tf.math.reduce_variance(x, [0, 1, 2])
    standard = (x - mean) * tf.math.rsqrt(variance + 0.001)
    return tf.nn.max_pool2d(tf.nn.leaky_relu(standard * scale + shift, 0.01), 2, 2, "VALID")


@pytest.mark.parametrize("jit", [None, False])
def test_pooling_before_scale_shift_and_activation_is_pooling_behind_them(jit):
    """To second order, by each of the three, for a scale below zero too."""
    assert_same_to_second_order(pooled_before, pooled_behind, images(5, 4), SCALE, SHIFT, jit=jit)


def test_two_derivatives_of_one_forward_pass_can_both_be_differentiated():
    x = images(4, 4)

    def through(function):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                out = function(x)
                losses = tf.reduce_sum(tf.sin(out)), tf.reduce_sum(out**3)
            one, other = (inner.gradient(loss, x) for loss in losses)
            value = tf.reduce_sum(tf.sin(one) * other) + tf.reduce_sum(tf.cos(out))
        return [one, other, outer.gradient(value, x)]

    for value, expected in zip(through(fast), through(plain), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_of_equal_entries_the_first_gets_the_gradient(sign):
    """Where a picture is saturated, whole windows are equal; the official pooling chooses the first, too."""
    x = np.random.default_rng(0).normal(size=[2, 4, 4, 3])
    x[:, :2, :2] = x[:, :1, :1]
    x[:, 2, 2:] = 3.0 * sign
    u = np.random.default_rng(1).normal(size=[2, 2, 2, 3])
    signs = tf.fill([3], tf.constant(sign, tf.float64))
    by_tensorflow = functools.partial(pooled_behind, scale=signs, shift=tf.ones([3], tf.float64))
    gradients = []
    for pooled in (lambda x: tf.nn.leaky_relu(fast(x, sign=signs) * signs + 1, 0.01), by_tensorflow):
        with tf.GradientTape() as tape:
            inp = tf.constant(x)
            tape.watch(inp)
            value = tf.reduce_sum(pooled(inp) * u)
        gradients.append(tape.gradient(value, inp))
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("offset", [0, 1000])
def test_moments_in_one_pass_are_as_exact_as_float32(offset):
    x = np.random.default_rng(0).normal(offset, 1, [4, 6, 6, 3]).astype(np.float32)
    x[0] += 3  # the first example, which the sums start from, is not like the others
    mean, variance = batch_norm._moments(tf.constant(x), 4 * 6 * 6)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


def test_the_first_examples_statistics():
    """With `reference`, an example's result does not depend on those behind."""
    x = images(4, 4)
    np.testing.assert_allclose(plain(x, reference=2)[:2], plain(x[:2]), rtol=1e-12)
    np.testing.assert_allclose(plain(x, reference=2)[2:], plain(tf.concat([x, x], 0), reference=2)[2:3])
    relu = functools.partial(batch_norm.batch_norm_pool_relu, epsilon=0.001, shift=SHIFT)
    np.testing.assert_allclose(relu(x, reference=2)[:2], plain_relu(x[:2], SHIFT), rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 21, 21, 32), (75, 42, 42, 32), (20, 14, 14, 64)])
@pytest.mark.parametrize("form", ["_closed_form", "_standardized"])
def test_no_compiled_function_hands_work_to_a_library(form, shape, monkeypatch):
    """XLA makes a library's call ready at its first execution, without a lock, and two tasks at once may crash."""
    calls = []

    def recorded(function):
        def call(*arguments):
            calls.append((function, [(a.shape, a.dtype) if tf.is_tensor(a) else a for a in arguments]))
            return function(*arguments)

        return call

    for name, function in list(vars(batch_norm).items()):
        if hasattr(function, "experimental_get_compiler_ir"):
            monkeypatch.setattr(batch_norm, name, recorded(function))

    @tf.function(autograph=False)
    def second_order(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(getattr(batch_norm, form)(x, 0.001) ** 3)
            slope = tf.reduce_sum(inner.gradient(value, x) ** 2)
        return outer.gradient(slope, x)

    second_order.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    assert {function._python_function.__name__ for function, _ in calls} >= EXPECTED[form]
    for function, arguments in calls:
        like = [tf.zeros(*argument) if isinstance(argument, tuple) else argument for argument in arguments]
        compiled = function.experimental_get_compiler_ir(*like)(stage="optimized_hlo")
        assert "kind=kCustom" not in compiled, function._python_function.__name__
