"""Where the task axis is added: the same gradient whatever devices there seem to be."""

import pytest
import tensorflow as tf

from maml.config import Config
from maml.maml import MAML
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
