"""The official networks, written in Keras: the official graph's meta-gradients, and pooling by our kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.peer_keras import keras_network, learner_of, official_order
from maml.kernels.convolution import conv2d
from maml.models import keras_layers
from maml.models.keras_layers import batch_norms, exchanges
from maml.models.keras_model import KerasModel
from tests.core.test_golden import FILES, TOLERANCE, load
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

L = keras.layers


def in_official_names(learner, names, gradient):
    return {official: gradient[ours] for ours, official in zip(learner.model.names, names, strict=True)}


def shaped_like(expected, found):
    return {name: tf.reshape(found[name], value.shape) for name, value in expected.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_official_meta_gradient(path):
    golden = load(path, "float64")
    network = golden.model.model
    if network.norm == "layer_norm" and network.kind == "conv":
        pytest.skip("Keras' layer-norm over a whole image has a scale for every pixel, the official one for a channel")
    learner = learner_of(golden.model.config, network, golden.weights)
    weights = learner.init_state().weights
    loss, gradient = learner.meta_gradient(weights, golden.episodes, 0)
    np.testing.assert_allclose(loss, golden.numbers["train_losses"][0], rtol=TOLERANCE)
    expected = golden.official("meta_grad/")
    found = shaped_like(expected, in_official_names(learner, official_order(network), gradient))
    idle = {f"b{i}" for i in range(1, network.layers)} if network.norm == "batch_norm" else set()
    assert relative_error(found, expected, [name for name in expected if name not in idle]) < golden.tolerance


def sequence(*layers, inputs=(9, 9, 2)):
    with_input = [keras.Input(inputs, dtype="float64"), *(make(dtype="float64") for make in layers)]
    return keras.Sequential(with_input)


def of(kind, *given, **flags):
    return lambda dtype: kind(*given, dtype=dtype, **flags)


CONV, NORM, POOL = of(L.Conv2D, 3, 3, padding="same"), of(L.BatchNormalization), of(L.MaxPooling2D)
ROUTED = {
    "ReLU": (CONV, NORM, of(L.ReLU), POOL),
    "nothing between": (CONV, NORM, POOL),
    "leaky": (CONV, NORM, of(L.LeakyReLU, 0.1), POOL),
    "activation": (CONV, of(L.BatchNormalization, scale=False), of(L.Activation, "elu"), POOL),
    "no shift": (CONV, of(L.BatchNormalization, center=False), of(L.Activation, "tanh"), POOL),
}
NOT_ROUTED = {
    "not increasing": (CONV, NORM, of(L.Activation, "gelu"), POOL),
    "a jump": (CONV, NORM, of(L.ReLU, threshold=0.2), POOL),
    "overlapping": (CONV, NORM, of(L.ReLU), of(L.MaxPooling2D, 3, 2)),
    "padded": (CONV, NORM, of(L.ReLU), of(L.MaxPooling2D, padding="same")),
    "average": (CONV, NORM, of(L.ReLU), of(L.AveragePooling2D, 2)),
    "another axis": (CONV, of(L.BatchNormalization, axis=1), of(L.ReLU), POOL),
    "over replicas": (CONV, of(L.BatchNormalization, synchronized=True), of(L.ReLU), POOL),
    "frozen": (CONV, of(L.BatchNormalization, trainable=False), of(L.ReLU), POOL),
}


def pools_of(model):
    """The poolings that are computed with the batch-norm before them."""
    return [pool for pool in batch_norms(model).values() if pool]


@pytest.mark.parametrize("name", [*ROUTED, "alone"])
def test_batch_norm_and_pooling_behind_it_are_the_kernels(name):
    """With scales of both signs, the same outputs and second derivatives as Keras' own layers give."""
    layers = ROUTED.get(name, (CONV, NORM, of(L.ReLU)))
    network = KerasModel(sequence(*layers, of(L.Flatten), of(L.Dense, 2)), dtype="float64")
    assert len(batch_norms(network.keras)) == 1 and len(pools_of(network.keras)) == (name in ROUTED)
    assert_same_without_exchanges(network, (9, 9, 2))


def assert_same_without_exchanges(network, shape, idle=None):
    """Outputs and second derivatives, but for idle weights, which have only rounding for a gradient.

    Without a list these are the biases of convolutions: a batch-norm follows.
    """
    weights = {
        key: value + tf.random.stateless_normal(value.shape, [3, 4], dtype="float64")
        for key, value in network.init(0).items()
    }
    x = tf.random.stateless_normal([4, *shape], [1, 2], dtype="float64")

    def everything():
        def outputs_and_second_order():
            with tf.GradientTape() as outer:
                outer.watch(weights)
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    outputs = network.apply(weights, x)
                    loss = tf.reduce_sum(outputs**2)
                slopes = tape.gradient(loss, weights)
                length = tf.add_n([tf.reduce_sum(slope**2) for slope in slopes.values()])
            return {"outputs": outputs} | outer.gradient(length, weights)

        return tf.function(outputs_and_second_order, autograph=False)()

    fast, network.exchanges = everything(), []
    plain = everything()
    if idle is None:
        idle = [name for name in network.names if "conv" in name and name.endswith("bias")]
    assert relative_error(fast, plain, [key for key in plain if key not in idle]) < 1e-10
    assert all(np.isfinite(fast[name]).all() for name in idle)


@pytest.mark.parametrize(("kernel", "strides"), [(3, 1), (3, 2), (2, 1), (1, 1), (5, 3)])
@pytest.mark.parametrize("channels", [2, 5])
def test_a_plain_convolution_is_the_kernel(kernel, strides, channels, monkeypatch):
    """Of images and of feature maps, with a bias and an activation."""
    made = []
    monkeypatch.setattr(keras_layers, "conv2d", lambda *args: made.append(args) or conv2d(*args))
    conv = of(L.Conv2D, 3, kernel, strides, padding="same", activation="tanh")
    shape = (7, 6, channels)
    network = KerasModel(sequence(conv, NORM, of(L.Flatten), of(L.Dense, 2), inputs=shape), dtype="float64")
    assert_same_without_exchanges(network, shape, idle=[])
    assert made


@pytest.mark.parametrize("alone", [False, True], ids=["behind batch-norms only", "once by itself, too"])
def test_one_pooling_for_several_blocks(alone):
    pool, inputs = POOL(dtype="float64"), keras.Input((16, 16, 2), dtype="float64")
    x = inputs
    for _ in range(2):
        x = pool(of(L.ReLU)(dtype="float64")(NORM(dtype="float64")(CONV(dtype="float64")(x))))
    x = pool(x) if alone else x
    model = keras.Model(inputs, of(L.Dense, 2)(dtype="float64")(of(L.GlobalAveragePooling2D)(dtype="float64")(x)))
    assert pools_of(model) == ([] if alone else [pool, pool])
    assert_same_without_exchanges(KerasModel(model, dtype="float64"), (16, 16, 2))


class OwnConv2D(L.Conv2D):
    """A convolution of your own."""


@pytest.mark.parametrize(
    "conv",
    [
        of(L.Conv2D, 3, 3),
        of(L.Conv2D, 3, (3, 1), padding="same"),
        of(L.Conv2D, 4, 3, padding="same", groups=2),
        of(L.Conv2D, 3, 3, padding="same", dilation_rate=2),
        of(L.SeparableConv2D, 3, 3, padding="same"),
        of(L.Conv2DTranspose, 3, 3, padding="same"),
        of(OwnConv2D, 3, 3, padding="same"),
    ],
    ids=["valid", "not square", "groups", "dilated", "separable", "transposed", "your own"],
)
def test_other_convolutions_stay_as_they_are(conv):
    assert not exchanges(sequence(conv))


class Frozen(keras.Model):
    """A base whose batch-norm keeps its running statistics, and a head."""

    def __init__(self, pool):
        super().__init__()
        layers = [L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU(), *([L.MaxPooling2D()] * pool)]
        self.base = keras.Sequential([keras.Input((9, 9, 2)), *layers])
        self.flat, self.head = L.Flatten(), L.Dense(2)

    def call(self, inputs):
        return self.head(self.flat(self.base(inputs, training=False)))


@pytest.mark.parametrize("pool", [False, True])
def test_a_batch_norm_that_is_called_for_inference_stays_so(pool):
    model, x = Frozen(pool), tf.random.stateless_normal([4, 9, 9, 2], [1, 2])
    expected = model(x)
    network = KerasModel(model)
    assert batch_norms(model)
    np.testing.assert_allclose(network.apply(network.init(0), x), expected, rtol=1e-5, atol=1e-6)


class ReLU(L.ReLU):
    """A layer of your own that is called like Keras'."""

    def call(self, inputs):
        return -inputs


class Renamed(keras.Sequential):
    """A model whose layers are not called in their order alone."""

    def call(self, inputs, training=None, mask=None):
        return self.layers[0](inputs)


def tanh(x):
    """A function of your own that is called like Keras'."""
    return -x


def test_what_is_only_called_like_keras_own_stays_as_it_is():
    assert not pools_of(sequence(CONV, NORM, of(ReLU), POOL))
    assert not pools_of(sequence(CONV, NORM, of(L.Activation, tanh), POOL))
    layers = [make(dtype="float64") for make in ROUTED["ReLU"]]
    assert not pools_of(Renamed([keras.Input((9, 9, 2)), *layers]))


@pytest.mark.parametrize("name", NOT_ROUTED)
def test_other_pooling_stays_as_it_is(name):
    assert not pools_of(sequence(*NOT_ROUTED[name]))


def test_what_is_read_before_it_is_pooled_stays_as_it_is():
    inputs = keras.Input((8, 8, 2))
    normed = L.BatchNormalization()(inputs)
    pooled = L.MaxPooling2D()(L.ReLU()(normed))
    both = L.Concatenate()([L.Flatten()(pooled), L.Flatten()(normed)])
    assert not pools_of(keras.Model(inputs, both))


@pytest.mark.parametrize("how", ["added one by one", "within another", "called before"])
def test_pooling_is_found_however_the_model_was_made(how):
    plain = sequence(*ROUTED["ReLU"])
    if how == "added one by one":
        model = keras.Sequential([keras.Input((9, 9, 2))])
        for layer in plain.layers:
            model.add(layer)
    elif how == "within another":
        inputs = keras.Input((9, 9, 2))
        model = keras.Model(inputs, L.Dense(2)(L.Flatten()(plain(inputs))))
    else:
        model = plain
        model(keras.Input((9, 9, 2)))
    assert len(pools_of(model)) == 1


def test_a_layer_that_is_called_twice_or_is_returned_stays_as_it_is():
    inputs, norm, pool = keras.Input((8, 8, 2)), L.BatchNormalization(), L.MaxPooling2D()
    twice = L.Flatten()(pool(norm(norm(inputs))))
    assert not pools_of(keras.Model(inputs, twice))
    normed = L.BatchNormalization()(inputs)
    assert not pools_of(keras.Model(inputs, [normed, L.MaxPooling2D()(normed)]))


def test_a_model_is_left_as_it_was():
    model = sequence(*ROUTED["ReLU"], of(L.Flatten), of(L.Dense, 2))
    x = np.random.default_rng(0).normal(size=(4, 9, 9, 2))
    before = model(x, training=True).numpy()
    network = KerasModel(model, dtype="float64")
    found = network.apply(network.init(0), tf.constant(x))
    np.testing.assert_allclose(found, before, rtol=1e-9)
    assert not any({"call", "convolution_op"} & vars(layer).keys() for layer in model.layers)


def test_the_network_has_the_official_weights():
    plain = tiny_model("pooled, flat head", "batch_norm")
    weights = tiny_weights(plain, 0)
    learner = learner_of(plain.config, plain.model, weights)
    task = tiny_episodes(plain, 1).tasks()[0]
    found = learner.model.apply(learner.init_state().weights, task.inputa)
    np.testing.assert_allclose(found, plain.model.apply(weights, task.inputa), rtol=1e-9)
    assert len(learner.adapted) == len(plain.model.adapted) < len(keras_network(plain.model).trainable_variables)
