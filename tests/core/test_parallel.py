"""Where the task axis is added: the same gradient whatever devices there seem to be."""

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.maml import MAML
from maml.parallel import rounded
from tests.tiny import relative_error, tiny_episodes

# Four filters: layers with more input channels than an image has are convolutions and not products of patches.
FLAGS = {
    "strided": {"datasource": "omniglot", "num_filters": 4, "num_classes": 2, "update_batch_size": 1},
    "sinusoid": {"norm": "None"},
}


@pytest.mark.parametrize("devices", [[], ["a GPU"]])
@pytest.mark.parametrize("network", FLAGS)
def test_the_compiled_gradient_is_the_eager_one_with_and_without_a_gpu(monkeypatch, network, devices):
    model = MAML(Config.from_flags(FLAGS[network] | {"dtype": "float64"}))
    episodes, weights = tiny_episodes(model, 2), model.init_state().weights
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: devices)
    loss, gradient = model.gradient(weights, episodes, 0)
    compiled = tf.function(model.gradient, autograph=False)(weights, episodes, tf.constant(0))
    assert compiled[0].numpy() == pytest.approx(loss.numpy(), rel=1e-12)
    assert relative_error(compiled[1], gradient) < 1e-9


def test_no_bit_shows_how_a_mean_was_divided():
    """Of six tasks at once, or of two parts of three: some means are halfway between two float32 numbers."""
    tasks = np.random.default_rng(0).normal(size=[6, 10_000]).astype(np.float32).astype(np.float64)
    at_once = tasks.sum(0) / 6
    in_parts = (tasks[:3].sum(0) / 3 + tasks[3:].sum(0) / 3) / 2
    assert np.any(at_once.astype(np.float32) != in_parts.astype(np.float32))
    weights = {"w": tf.zeros([10_000])}
    means = [rounded((tf.constant(0.0, tf.float64), {"w": tf.constant(mean)}), weights) for mean in (at_once, in_parts)]
    np.testing.assert_array_equal(means[0][1]["w"], means[1][1]["w"])
    np.testing.assert_allclose(means[0][1]["w"], at_once, rtol=2**-24 + 2**-39)


def test_means_in_float64_and_infinite_ones_stay_as_they_are():
    value = tf.constant([1 / 3, np.inf, -np.inf, 0.0], tf.float64)
    for dtype in (tf.float64, tf.float32):
        loss, means = rounded((tf.constant(0.1, tf.float64), {"w": value}), {"w": tf.zeros([4], dtype)})
        np.testing.assert_array_equal(means["w"], tf.cast(value, dtype))
        assert loss == tf.constant(0.1, dtype)
