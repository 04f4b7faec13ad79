"""Shapes and initial values of the official networks."""

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.models.official import Network


def weights_of(**flags):
    network = Network.from_config(Config.from_flags(flags))
    return {name: weight.numpy() for name, weight in network.init(0).items()}


def shapes_of(**flags):
    return {name: weight.shape for name, weight in weights_of(**flags).items()}


def test_sinusoid():
    shapes = shapes_of(norm="None")
    assert shapes == {"w1": (1, 40), "b1": (40,), "w2": (40, 40), "b2": (40,), "w3": (40, 1), "b3": (1,)}
    assert shapes_of(norm="None", baseline="oracle")["w1"] == (3, 40)
    assert set(shapes_of()) - set(shapes) == {"model/0/beta", "model/1/beta"}


def test_fully_connected_omniglot():
    shapes = shapes_of(datasource="omniglot", conv=False, num_classes=20)
    assert [shapes[f"w{i}"] for i in range(1, 6)] == [(784, 256), (256, 128), (128, 64), (64, 64), (64, 20)]


@pytest.mark.parametrize(
    ("flags", "conv1", "head"),
    [
        ({"datasource": "omniglot"}, (3, 3, 1, 64), (64, 5)),
        ({"datasource": "omniglot", "max_pool": True}, (3, 3, 1, 64), (64, 5)),
        ({"datasource": "miniimagenet"}, (3, 3, 3, 32), (800, 5)),
        ({"datasource": "miniimagenet", "max_pool": False}, (3, 3, 3, 32), (1152, 5)),
    ],
)
def test_convolutional(flags, conv1, head):
    shapes = shapes_of(**flags)
    assert shapes["conv1"] == conv1
    assert shapes["w5"] == head
    network = Network.from_config(Config.from_flags(flags))
    inputs = tf.zeros([3, network.dim_input])
    assert network.apply(network.init(0), inputs).shape == (3, 5)


@pytest.mark.parametrize(
    ("norm", "names"), [("batch_norm", {"beta"}), ("layer_norm", {"beta", "gamma"}), ("None", set())]
)
def test_normalizations_and_what_is_adapted(norm, names):
    weights = weights_of(datasource="omniglot", norm=norm)
    network = Network.from_config(Config.from_flags({"datasource": "omniglot", "norm": norm}))
    normalization = set(weights) - network.adapted
    assert network.adapted == {f"{kind}{i}" for kind in ("conv", "b") for i in range(1, 5)} | {"w5", "b5"}
    assert normalization == {f"model/{i}/{name}" for i in range(4) for name in names}
    assert all((weights[name] == (1 if name.endswith("gamma") else 0)).all() for name in normalization)


def test_initial_values():
    """Truncated normal (0.01, cut at two deviations); Glorot uniform; Omniglot's head normal (1); biases zero."""
    fc = weights_of(datasource="omniglot", conv=False)
    assert 0.0085 < fc["w1"].std() < 0.0091  # of a normal cut at 2σ: 0.88 σ
    assert 0.019 < abs(fc["w1"]).max() <= 0.02
    omniglot, mini = weights_of(datasource="omniglot"), weights_of(datasource="miniimagenet")
    for kernel, limit in (
        (omniglot["conv2"], np.sqrt(6 / (9 * 128))),
        (mini["conv1"], np.sqrt(6 / (9 * 35))),
        (mini["w5"], np.sqrt(6 / 805)),
    ):
        assert 0.97 * limit < abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(omniglot["w5"].std(), 1, rtol=0.12)
    for weights in (fc, omniglot, mini):
        assert all((weight == 0).all() for name, weight in weights.items() if name.startswith("b"))


def test_the_seed_decides_the_weights():
    network = Network.from_config(Config.from_flags({"datasource": "omniglot"}))
    first, same, other = (network.init(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["conv1"], same["conv1"])
    assert not np.array_equal(first["conv1"], other["conv1"])
    assert not np.array_equal(first["conv2"], first["conv3"])


def test_names_in_checkpoints_are_the_official_ones():
    """The official code names the scope of a fully connected layer i + 1 from the second on, and so skips 1."""
    network = Network.from_config(Config.from_flags({"datasource": "omniglot", "conv": False}))
    names = network.checkpoint_names(network.init(0))
    assert names["w1"] == "model/Variable" and names["b1"] == "model/Variable_1" and names["b5"] == "model/Variable_9"
    assert [names[f"model/{i}/beta"] for i in range(4)] == [f"model/{i}/beta" for i in (0, 2, 3, 4)]
    network = Network.from_config(Config.from_flags({"datasource": "omniglot"}))
    names = network.checkpoint_names(network.init(0))
    assert names["conv1"] == "model/conv1" and names["b2"] == "model/Variable_1" and names["w5"] == "model/w5"
    assert [names[f"model/{i}/beta"] for i in range(4)] == [f"model/{i}/beta" for i in range(4)]
