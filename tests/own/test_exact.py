"""The meta-gradient of layers, losses and functions of one's own is exact."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes
from maml.models import keras_model
from maml.models.exact import exact_functions
from maml.models.function_model import FunctionModel
from maml.models.keras_model import KerasModel
from maml.own.algorithm import OwnMAML
from maml.training.gradient_check import check_gradients
from tests.own.fixtures import LAYERS, L, model

LOSSES = {
    "mse": "mse",
    "mae": lambda outputs, y: tf.reduce_mean(keras.losses.mean_absolute_error(y, outputs)),
    "huber": lambda outputs, y: tf.reduce_mean(keras.losses.huber(y, outputs)),
    "log-cosh": lambda outputs, y: tf.reduce_mean(keras.losses.log_cosh(y, outputs)),
    "poisson": lambda outputs, y: tf.reduce_mean(keras.losses.poisson(y, tf.nn.softplus(outputs))),
    "cross-entropy": lambda outputs, y: tf.reduce_mean(
        keras.losses.categorical_crossentropy(tf.nn.softmax(y), outputs, from_logits=True)
    ),
    "sparse cross-entropy": lambda outputs, y: tf.reduce_mean(
        keras.losses.sparse_categorical_crossentropy(tf.argmax(y, -1), outputs, from_logits=True)
    ),
    "binary cross-entropy": lambda outputs, y: tf.reduce_mean(
        keras.losses.binary_crossentropy(tf.nn.sigmoid(y), outputs, from_logits=True)
    ),
    "focal": lambda outputs, y: tf.reduce_mean(
        keras.losses.binary_focal_crossentropy(tf.cast(y > 0, y.dtype), outputs, from_logits=True)
    ),
    "divergence": lambda outputs, y: tf.reduce_mean(
        keras.losses.kl_divergence(tf.nn.softmax(y), tf.nn.softmax(outputs))
    ),
    "cosine": lambda outputs, y: tf.reduce_mean(keras.losses.cosine_similarity(y, outputs)),
}


def report_of(net: keras.Model | FunctionModel, shape, loss="mse", **flags):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(2, n, *s)) for n, s in ((3, shape), (3, (2,)), (4, shape), (4, (2,)))]
    config = Config.from_flags(
        {"datasource": "own", "loss": "mse", "norm": "None", "dtype": "float64", "update_lr": 0.1, "num_updates": 2}
        | flags
    )
    network = net if isinstance(net, FunctionModel) else KerasModel(net, dtype="float64")
    learner = OwnMAML(config, network, loss)
    weights = learner.init_state().weights
    return check_gradients(learner, weights, Episodes(*map(tf.constant, parts)), directions=2)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_exact(name, request):
    if name != "grouped":  # which TensorFlow differentiates in a graph only
        request.getfixturevalue("eagerly")
    shape, *layers = LAYERS[name]
    report = report_of(model(*layers, lambda: L.Dense(2), shape=shape), shape)
    assert report.exact, report.lines()


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", ["embedding", "attention"])
def test_layers_of_tokens_are_exact(name):
    tokens = keras.Input((4,), dtype="int32")
    hidden = L.Embedding(6, 5, dtype="float64")(tokens)
    if name == "attention":
        hidden = L.MultiHeadAttention(2, 3, dtype="float64")(hidden, hidden)
    net = keras.Model(tokens, L.Dense(2, dtype="float64")(L.Flatten(dtype="float64")(hidden)))
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 6, (2, 3, 4)), rng.normal(size=(2, 3, 2))]
    parts += [rng.integers(0, 6, (2, 5, 4)), rng.normal(size=(2, 5, 2))]
    flags = {"datasource": "own", "loss": "mse", "norm": "None", "dtype": "float64", "update_lr": 0.1, "num_updates": 2}
    learner = OwnMAML(Config.from_flags(flags), KerasModel(net, dtype="float64"), "mse")
    episodes = Episodes(*(tf.constant(part, tf.int32 if part.dtype.kind == "i" else None) for part in parts))
    report = check_gradients(learner, learner.init_state().weights, episodes, directions=2)
    assert report.exact, report.lines()


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_exact(name):
    report = report_of(model(lambda: L.Dense(6, "tanh"), lambda: L.Dense(2)), (4,), LOSSES[name])
    assert report.exact, report.lines()


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("learn_rates", ["weight", "step"])
def test_learned_rates_are_exact(learn_rates):
    net = model(lambda: L.Dense(6, "tanh"), lambda: L.Dense(2))
    assert report_of(net, (4,), learn_rates=learn_rates).exact


@pytest.mark.usefixtures("eagerly")
def test_batch_norm_as_keras_has_it_is_not_exact(monkeypatch):
    """The test above could fail."""
    for name in ("exact_functions", "by_kernels"):
        monkeypatch.setattr(keras_model, name, contextlib.nullcontext)
    shape, *layers = LAYERS["batch-norm"]
    assert not report_of(model(*layers, lambda: L.Dense(2), shape=shape), shape).exact


def convolved(weights, x):
    """A function that normalizes and adds biases by TensorFlow's own functions."""
    x = tf.nn.bias_add(tf.nn.conv2d(x, weights["kernel"], 2, "SAME"), weights["bias"])
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    x = tf.nn.tanh(tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3))
    return tf.nn.bias_add(tf.reshape(x, [len(x), -1]) @ weights["head"], weights["end"])


def normalized_mse(outputs, y):
    """A loss that brings the outputs to mean 0 and variance 1."""
    mean, variance = tf.nn.moments(outputs, [0], keepdims=True)
    return tf.reduce_mean(tf.square((outputs - mean) / tf.sqrt(variance + 0.1) - y))


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("without", [None, "maml.models.function_model", "maml.own.algorithm"])
def test_functions_and_losses_by_tensorflows_moments_are_exact(without, monkeypatch):
    """Also that it would be seen if one of them was not."""
    if without:
        monkeypatch.setattr(f"{without}.exact_functions", contextlib.nullcontext)
    shapes = {"kernel": (3, 3, 2, 3), "bias": (3,), "head": (12, 2), "end": (2,)}
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    network = FunctionModel(weights, convolved, dtype="float64")
    assert report_of(network, (4, 4, 2), normalized_mse).exact == (without is None)


@pytest.mark.parametrize("data_format", [None, "NHWC", "NCHW"])
def test_biases_are_added_without_the_gradient_that_onednn_merges(data_format):
    """Into a cycle, in about half of all starts, where convolutions with a stride stand behind each other."""
    x, bias = tf.random.normal([2, 3, 5, 3]), tf.random.normal([3])

    @tf.function
    def both(x, bias):
        with tf.GradientTape() as tape, exact_functions():
            tape.watch(bias)
            outputs = tf.nn.bias_add(x, bias, data_format=data_format)
        return outputs, tape.gradient(outputs, bias)

    outputs, gradient = both(x, bias)
    np.testing.assert_array_equal(outputs, tf.nn.bias_add(x, bias, data_format))
    np.testing.assert_array_equal(gradient, [30, 30, 30])
    kinds = {op.type for op in both.get_concrete_function(x, bias).graph.get_operations()}
    assert not kinds & {"BiasAdd", "BiasAddGrad"}
    with pytest.raises(ValueError, match="Shapes"), exact_functions():
        tf.nn.bias_add(x, tf.zeros([2]), data_format)


def test_functions_stay_exchanged_until_the_last_thread_is_done():
    before = tf.nn.moments, tf.nn.bias_add
    one, other = exact_functions(), exact_functions()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert tf.nn.moments is not before[0] and tf.nn.bias_add is not before[1]
    other.__exit__(None, None, None)
    assert (tf.nn.moments, tf.nn.bias_add) == before
