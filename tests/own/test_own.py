"""A model, a loss and tasks of your own: exact, resumable, and one line for what does not fit."""

import contextlib
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError
from maml.models import keras_model
from maml.models.exact import exact_functions
from maml.models.function_model import FunctionModel
from maml.models.keras_model import KerasModel, weight_names
from maml.own.algorithm import OwnMAML
from maml.own.tasks import OwnTasks
from maml.training.checkpoints import best_last, list_checkpoints
from maml.training.gradient_check import check_gradients
from tests.command_line import ROOT, run_here
from tests.image_fixtures import write_class_folders

L = keras.layers


@pytest.fixture(autouse=True)
def no_global_seed():
    """Keras sets TensorFlow's, which would stay for the other tests of the process."""
    yield
    tf.random.set_seed(None)


def model(*layers, shape=(4,), dtype="float64", seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return keras.Sequential([keras.Input(shape), *(layer() for layer in layers)])
    finally:
        keras.config.set_dtype_policy(before)


IMAGE, SERIES = (6, 6, 2), (5, 3)
LAYERS = {
    "dense": ((4,), lambda: L.Dense(5, "tanh")),
    "conv": (IMAGE, lambda: L.Conv2D(3, 3, activation="softplus"), L.Flatten),
    "strided": (IMAGE, lambda: L.Conv2D(3, 3, strides=2, padding="same"), L.GlobalAveragePooling2D),
    "grouped": (IMAGE, lambda: L.Conv2D(4, 3, groups=2), L.Flatten),
    "dilated": (IMAGE, lambda: L.Conv2D(3, 2, dilation_rate=2), L.Flatten),
    "transposed": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2), L.Flatten),
    "depthwise": (IMAGE, lambda: L.DepthwiseConv2D(3), L.Flatten),
    "separable": (IMAGE, lambda: L.SeparableConv2D(3, 3), L.Flatten),
    "conv1d": (SERIES, lambda: L.Conv1D(3, 2), L.GlobalMaxPooling1D),
    "conv3d": ((3, 4, 4, 1), lambda: L.Conv3D(2, 2), L.Flatten),
    "max pooling": (IMAGE, lambda: L.Conv2D(3, 3, padding="same"), L.MaxPooling2D, L.Flatten),
    "average pooling": (IMAGE, lambda: L.Conv2D(3, 3, padding="same"), lambda: L.AveragePooling2D(2), L.Flatten),
    "batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), L.BatchNormalization, L.Flatten),
    "dense batch-norm": ((4,), lambda: L.Dense(5), L.BatchNormalization),
    "group-norm": (IMAGE, lambda: L.Conv2D(4, 3), lambda: L.GroupNormalization(2), L.Flatten),
    "layer-norm": ((4,), lambda: L.Dense(5), L.LayerNormalization),
    "rms-norm": ((4,), lambda: L.Dense(5), L.RMSNormalization),
    "unit-norm": ((4,), lambda: L.Dense(5), L.UnitNormalization),
    "upsampling": (IMAGE, lambda: L.Conv2D(2, 3), lambda: L.UpSampling2D(2), L.Flatten),
    "simple rnn": (SERIES, lambda: L.SimpleRNN(4)),
    "lstm": (SERIES, lambda: L.LSTM(3)),
    "gru": (SERIES, lambda: L.GRU(3)),
    "bidirectional": (SERIES, lambda: L.Bidirectional(L.LSTM(2))),
    "time-distributed": (SERIES, lambda: L.TimeDistributed(L.Dense(3)), L.Flatten),
    "masking": (SERIES, lambda: L.Masking(0.5), lambda: L.LSTM(3)),
    "convolutional lstm": ((3, 4, 4, 1), lambda: L.ConvLSTM2D(2, 2), L.Flatten),
    "instance-norm": (IMAGE, lambda: L.Conv2D(4, 3), lambda: L.GroupNormalization(-1), L.Flatten),
    "pooling 1d": (SERIES, lambda: L.Conv1D(3, 2), lambda: L.AveragePooling1D(2), L.GlobalAveragePooling1D),
    "strided transposed 1d": (SERIES, lambda: L.Conv1DTranspose(2, 3, strides=2), L.Flatten),
    "frozen batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), lambda: L.BatchNormalization(trainable=False), L.Flatten),
    "pooled batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), L.BatchNormalization, L.ReLU, L.MaxPooling2D, L.Flatten),
    "einsum": (SERIES, lambda: L.EinsumDense("abc,cd->abd", (5, 4)), L.Flatten),
    "dropout": ((4,), lambda: L.Dense(8, "tanh"), lambda: L.Dropout(0.5)),
}
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


@pytest.mark.parametrize(
    ("algorithm", "adapted", "rates"),
    [("maml", 4, "none"), ("anil", 2, "none"), ("metasgd", 4, "weight"), ("maml++", 4, "step")],
)
def test_the_family_is_there_for_any_model(tmp_path, algorithm, adapted, rates):
    def tasks(rng):
        x, y = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
        return x[:3], y[:3], x[3:], y[3:]

    net = keras.Sequential([keras.Input((4,)), L.Dense(6, "tanh"), L.Dense(2)])
    learner = maml.train(net, tasks, algorithm=algorithm, metatrain_iterations=2, logdir=tmp_path)
    assert learner.folder.name.startswith("own" if algorithm == "maml" else algorithm)
    assert len(learner.model.adapted) == adapted and learner.config.learn_rates == rates
    before, task = learner.weights, [tf.constant(part) for part in tasks(np.random.default_rng(0))]
    after = learner.model.adapt(before, *task[:2], 1)
    assert sum(np.any(after[name] != before[name]) for name in learner.model.model.names) == adapted


def test_an_algorithm_that_is_no_member_of_the_family_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"reptile is for the official networks; maml.train has maml, anil, metasgd, maml"
    ):
        maml.train(
            keras.Sequential([keras.Input((4,)), L.Dense(2)]),
            lambda rng: None,
            loss="xent",
            algorithm="reptile",
            logdir=tmp_path,
        )


def parabola(rng):
    """Points of y = a x²."""
    slope, x = rng.normal(), rng.normal(size=(12, 1))
    return x[:5], slope * x[:5] ** 2, x[5:], slope * x[5:] ** 2


def photos(folder):
    write_class_folders(folder, {"train": 3, "val": 3, "test": 3}, 3, size=4, channels=1, seed=len(folder.name))
    return maml.folder_tasks(str(folder), image_size=4, channels=1, num_classes=2, shots=1, queries=1)


def test_a_run_does_not_go_on_with_other_tasks(tmp_path, monkeypatch):
    """By the source of a function, the content of a list, a data set and images; other tasks of validation may be."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lists = [[line(rng) for _ in range(3)] for _ in range(2)]
    data_sets = [tf.data.Dataset.from_tensor_slices(tuple(map(np.stack, zip(*tasks, strict=True)))) for tasks in lists]
    images = [photos(tmp_path / name) for name in ("a", "bb")]
    pairs = {"function": (line, parabola), "list": lists, "data set": data_sets, "images": images}
    for kind, (first, second) in pairs.items():
        loss = "xent" if kind == "images" else "mse"

        def net(kind=kind):
            if kind == "images":
                return model(L.Flatten, lambda: L.Dense(2), shape=(4, 4, 1), dtype="float32")
            return small()

        for val in (first, second):
            maml.train(net(), first, val=val, loss=loss, logdir=kind, val_tasks=2, **TINY)
        with pytest.raises(UserError, match="was trained on other tasks"):
            maml.train(net(), second, loss=loss, logdir=kind, **TINY)
    maml.train(small(), parabola, logdir="function", resume=False, **TINY)
    assert maml.load("function", model=small()).test(line, 2).measure == "loss"


def test_a_data_set_of_too_many_tasks_is_refused(monkeypatch):
    monkeypatch.setattr("maml.own.tasks.MOST_TASKS", 3)
    arrays = [np.zeros((4, 2, 1)) for _ in range(4)]
    with pytest.raises(UserError, match="has more than 3 tasks; give a function of rng"):
        maml.train(small(), tf.data.Dataset.from_tensor_slices(tuple(arrays)), **TINY)


def test_structures_are_not_exported_and_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def task(rng):
        x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 1))
        return {"a": x[:2], "b": x[:2]}, y[:2], {"a": x[2:], "b": x[2:]}, y[2:]

    weights = {"w": np.ones((2, 1))}
    learner = maml.train((weights, lambda w, x: (x["a"] + x["b"]) @ w["w"]), task, **TINY)
    with pytest.raises(UserError, match="structures of arrays, which a SavedModel's signature does not take"):
        learner.export("exported")
    assert not (tmp_path / "exported").exists()


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


def line(rng):
    """Points of a straight line."""
    slope, x = rng.normal(), rng.normal(size=(12, 1))
    return x[:5], slope * x[:5], x[5:], slope * x[5:]


def blobs(rng):
    """Three clouds of points, with their numbers as labels."""
    centres = 3 * rng.normal(size=(3, 2))
    y = rng.permutation(np.repeat([0, 1, 2], 6))
    x = centres[y] + 0.3 * rng.normal(size=(18, 2))
    return x[:9], y[:9], x[9:], y[9:]


TINY = {"metatrain_iterations": 20, "update_lr": 0.1, "num_updates": 2, "meta_batch_size": 2}


def small(outputs=1, inputs=1) -> keras.Model:
    return model(lambda: L.Dense(8, "tanh"), lambda: L.Dense(outputs), shape=(inputs,), dtype="float32")


def test_a_run_resumes_to_the_bit_whatever_else_the_process_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    maml.train(small(), line, logdir="whole", save_interval=10, **TINY)
    maml.train(small(), line, logdir="parts", save_interval=10, **TINY | {"metatrain_iterations": 10})
    again = maml.train(small(), line, logdir="parts", save_interval=10, **TINY)
    saved = []
    for logdir in ("whole", "parts"):
        [folder] = [path for path in (tmp_path / logdir).iterdir() if path.is_dir()]
        reader = tf.train.load_checkpoint(str(list_checkpoints(folder)[-1].prefix))
        saved.append({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})
    assert saved[0].keys() == saved[1].keys() and any("dense/kernel" in name for name in saved[0])
    for name, values in saved[0].items():
        np.testing.assert_array_equal(values, saved[1][name], name)
    loaded = maml.load("parts", model=small())
    x, y, *_ = line(np.random.default_rng(1))
    np.testing.assert_array_equal(loaded.adapt(x, y).predict(x), again.adapt(x, y).predict(x))


def test_an_operation_without_a_second_derivative_learns_to_first_order(tmp_path):
    learned = []
    for through in (nearest, tf.identity):
        made = ({"w": np.full([1, 1], 0.5)}, lambda w, x: through(x @ w["w"]))  # noqa: B023
        learned.append(maml.train(made, line, stop_grad=True, logdir=tmp_path / through.__name__, **TINY).weights["w"])
    np.testing.assert_array_equal(*learned)
    assert learned[0] != 0.5


def test_what_does_not_fit_a_learner_is_one_line(tmp_path):
    """A y of another shape would be broadcast, and a label that is none would be a row of zeros: numbers, no error."""
    line_learner = maml.train(small(), line, logdir=tmp_path / "line", **TINY)
    blob_learner = maml.train(small(3, 2), blobs, loss="xent", logdir=tmp_path / "blobs", **TINY)
    x, y, *_ = line(np.random.default_rng(1))
    points, labels, *_ = blobs(np.random.default_rng(1))
    adapted = line_learner.adapt(x, y)
    for call, said in (
        (lambda: line_learner.adapt(x, y[:, 0]), r"the shape \[5, 1\], and the labels \[5\]"),
        (lambda: line_learner.adapt(x, y[:-1]), r"the shape \[5, 1\], and the labels \[4, 1\]"),
        (lambda: line_learner.adapt(np.zeros([4, 3]), y[:4]), r"does not take x of the shape \[\[4, 3\]\]"),
        (lambda: line_learner.adapt(x, y, num_updates=-1), "num_updates=-1: must be a whole number"),
        (lambda: line_learner.adapt(x, y, num_updates="2"), "num_updates='2': must be a whole number"),
        (lambda: line_learner.test(line, 0), "count=0: must be a whole number, 1 or more"),
        (lambda: adapted.predict(np.zeros([4, 3])), "does not take x of the shape"),
        (lambda: adapted.predict(None), "x: holds object, needed numbers"),
        (lambda: adapted.predict([[1.0], [2.0]]), "x: holds a single number; make lists an array"),
        (lambda: adapted.predict(np.full([2, 1], np.nan)), "x: holds a nan"),
        (lambda: line_learner.adapt(x[:0], y[:0]), "x: holds no example"),
        (lambda: maml.load(tmp_path / "line", model=small(), loss="foo"), "loss='foo': must be mse"),
        (lambda: blob_learner.adapt(points, labels + 1), "y: labels from 1 to 3, and the model has 3 outputs"),
        (lambda: blob_learner.adapt(points, -labels), "y: labels from -2 to 0"),
        (lambda: blob_learner.adapt(points, labels[:-1]), r"the shape \[9, 3\], and the labels \[8, 3\]"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    run_here("--norm=None", "--metatrain_iterations=1", f"--logdir={tmp_path / 'sine'}")
    with pytest.raises(UserError, match=r"no run of maml\.train in it"):
        maml.load(tmp_path / "sine", model=small())
    assert np.isfinite(line_learner.adapt(x, y, num_updates=np.int64(2)).predict(x)).all()


@pytest.mark.parametrize("doubles", ["Keras", "function"])
def test_a_run_in_float64(doubles, tmp_path):
    made = {
        "Keras": lambda: model(lambda: L.Dense(8, "tanh"), lambda: L.Dense(1), shape=(1,)),
        "function": lambda: ({"w": np.ones([1, 1], np.float32)}, lambda w, x: x @ w["w"]),
    }[doubles]
    learner = maml.train(made(), line, dtype="float64", logdir=tmp_path, **TINY)
    assert {weight.dtype for weight in learner.weights.values()} == {tf.float64}
    x, y, *_ = line(np.random.default_rng(1))
    again = maml.load(tmp_path, model=made()).adapt(x, y).predict(x)
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again, learner.adapt(x, y).predict(x))


def test_whole_numbers_are_targets_of_a_regression(tmp_path):
    """As floats of the same values are."""

    def counts(rng, kind):
        x = rng.integers(0, 9, (8, 1))
        y = (x * rng.integers(1, 4)).astype(kind)
        return np.float32(x[:4]), y[:4], np.float32(x[4:]), y[4:]

    learned = [
        maml.train(small(), lambda rng, kind=kind: counts(rng, kind), logdir=tmp_path / kind.__name__, **TINY)
        for kind in (int, float)
    ]
    x, y, *_ = counts(np.random.default_rng(1), int)
    outputs = [
        learner.adapt(x, kind(y)).predict(x) for learner, kind in zip(learned, (np.int64, np.float32), strict=True)
    ]
    np.testing.assert_array_equal(*outputs)


def test_numbers_of_numpys_types_are_numbers(tmp_path):
    flags = {"metatrain_iterations": np.int64(3), "update_lr": np.float32(0.5), "meta_batch_size": 2.0, "meta_lr": 1}
    learner = maml.train(small(), line, logdir=tmp_path / "a", **flags)
    plain = {"metatrain_iterations": 3, "update_lr": 0.5, "meta_batch_size": 2, "meta_lr": 1.0}
    same = maml.train(small(), line, logdir=tmp_path / "b", **plain)
    assert learner.config.replace(logdir="") == same.config.replace(logdir="")
    assert learner.folder.name == same.folder.name


def test_an_ensemble_averages_what_its_members_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = TINY | {"val_tasks": 4, "val_interval": 5, "keep_best": 3}
    maml.train(small(), line, val=line, logdir="run", **flags)
    x, y, *_ = line(np.random.default_rng(1))
    [folder] = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    best = [checkpoint.iteration for checkpoint in best_last(folder)]
    alone = [maml.load("run", model=small(), test_checkpoint="best", test_iter=iteration) for iteration in best]
    together = maml.load("run", model=small(), test_checkpoint="ensemble")
    outputs = [learner.adapt(x, y).predict(x) for learner in alone]
    assert len(best) == 3 and np.abs(outputs[0] - outputs[1]).max() > 1e-4
    np.testing.assert_allclose(together.adapt(x, y).predict(x), np.mean(outputs, 0), atol=1e-6)
    losses = [learner.test(line, 8).result.mean[-1] for learner in (*alone, together)]
    assert losses[-1] <= np.mean(losses[:-1]) + 1e-6, "a mean squared error is convex"
    together.export("exported")
    loaded = tf.saved_model.load("exported").signatures["serving_default"]
    support_x, support_y = (tf.constant(values, tf.float32) for values in (x, y))
    found = loaded(support_x=support_x, support_y=support_y, query_x=support_x)
    np.testing.assert_allclose(found["outputs"], np.mean(outputs, 0), atol=1e-6)


def test_classification_learns_tests_predicts_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = TINY | {"metatrain_iterations": 150, "update_lr": 0.5}
    learner = maml.train(small(3, 2), blobs, val=blobs, loss="xent", val_interval=50, val_tasks=8, **flags)
    table = learner.test(blobs, 40)
    assert table.measure == "accuracy" and table.result.mean[-1] > 0.7 > table.result.mean[0]
    assert "2 updates, query set" in str(table) and "(40 tasks)" in str(table)
    x, y, query, labels = blobs(np.random.default_rng(3))
    adapted = learner.adapt(x, y, num_updates=5)
    assert (adapted.predict(query) == labels).mean() > 0.7
    np.testing.assert_allclose(adapted.predict_proba(query).sum(-1), 1, rtol=1e-5)
    assert learner.check_gradients(blobs, directions=2).exact
    learner.export("exported")
    exported = tf.saved_model.load("exported").signatures["serving_default"]
    found = exported(
        support_x=tf.constant(x, tf.float32),
        support_y=tf.one_hot(y, 3),
        query_x=tf.constant(query, tf.float32),
    )["outputs"]
    expected = learner.adapt(x, y).predict_proba(query)
    np.testing.assert_allclose(tf.nn.softmax(found), expected, rtol=1e-4, atol=1e-6)


def test_a_function_of_nested_weights_and_structures():
    def forward(weights, x):
        return x["a"] @ weights["first"]["w"] + x["b"] * weights["scale"]

    def task(rng):
        def half(n):
            return {"a": rng.normal(size=(n, 2)), "b": rng.normal(size=(n, 1))}

        xa, xb = half(3), half(4)
        return xa, xa["a"].sum(-1, keepdims=True), xb, xb["a"].sum(-1, keepdims=True)

    own = FunctionModel({"first": {"w": np.ones((2, 1))}, "scale": np.ones(1)}, forward, lambda name: "/" in name)
    assert own.adapted == {"first/w"} and own.names == ["first/w", "scale"]
    config = Config.from_flags({"datasource": "own", "loss": "mse", "norm": "None", "update_lr": 0.1})
    learner, data = OwnMAML(config, own, "mse"), OwnTasks(config, {"train": task})
    loss, gradient = learner.gradient(learner.init_state().weights, data.episodes("train", 0, 3), 0)
    assert loss > 0 and all(np.isfinite(value).all() for value in gradient.values())


def test_tasks_are_a_function_of_seed_split_and_number():
    config = Config.from_flags({"datasource": "own", "loss": "mse", "norm": "None"})
    first, again = (OwnTasks(config, {"train": line, "val": line}) for _ in range(2))
    for index in (3, 0, 7, 3):
        for split in ("train", "val"):
            np.testing.assert_array_equal(
                first.episodes(split, index, 4).inputa, again.episodes(split, index, 4).inputa
            )
    one = again.task("train", 13)[0]
    np.testing.assert_array_equal(first.episodes("train", 3, 4).inputa[1], one)
    assert not np.array_equal(first.task("val", 13)[0], one)


def test_dropout_has_a_mask_for_every_task_and_none_in_a_test():
    net = KerasModel(model(lambda: L.Dropout(0.5), lambda: L.Dense(1), shape=(50,), dtype="float32"))
    weights = net.init(0)
    first, second = tf.ones([1, 50]), tf.ones([1, 50]) * 1.5
    assert abs(net.apply(weights, first) * 1.5 - net.apply(weights, second)).numpy().max() > 1e-3
    np.testing.assert_array_equal(net.apply(weights, first), net.apply(weights, first))
    with net.quiet():
        np.testing.assert_allclose(net.apply(weights, first) * 1.5, net.apply(weights, second), rtol=1e-5)
    assert abs(net.apply(weights, first) * 1.5 - net.apply(weights, second)).numpy().max() > 1e-3


def test_names_do_not_depend_on_what_was_built_before():
    paths = ["s/dense_7/kernel", "s/dense_7/bias", "s/dense_8/kernel", "s/lstm/lstm_cell_3/kernel"]
    assert weight_names(paths) == ["s/dense/kernel", "s/dense/bias", "s/dense_1/kernel", "s/lstm/lstm_cell/kernel"]


def absolute(outputs, y):
    return tf.reduce_mean(tf.abs(outputs - y))


def fourth_power(outputs, y):
    return tf.reduce_mean((outputs - y) ** 4)


def generator(rng):
    yield line(rng)


def sometimes(bad):
    """A function of rng whose later tasks are bad."""
    calls = []

    def task(rng):
        calls.append(1)
        parts = [np.array(part) for part in line(rng)]
        if len(calls) > 3:
            bad(parts)
        return parts

    return task


def nan_in(parts):
    parts[0][1, 0] = np.nan


def shorter(parts):
    parts[2] = parts[2][:-1]


def raising(parts):
    raise KeyError("nothing")


def nearest(values):
    """Values [n, 1] through an operation without a second derivative."""
    return tf.image.resize(values[:, None, None], [1, 1], "nearest")[:, 0, 0]


def two_outputs():
    inputs = keras.Input((1,))
    return keras.Model(inputs, [L.Dense(1)(inputs), L.Dense(1)(inputs)])


BAD = {
    "no weights": (lambda: model(L.Flatten, shape=(1,)), line, {}, "no trainable weights"),
    "not a model": (lambda: object(), line, {}, "needed a Keras 3 model or"),
    "a vector of losses": (small, line, {"loss": lambda o, y: tf.square(o - y)[:, 0]}, r"returns the shape \[5\]"),
    "another loss": (small, line, {"loss": "mae"}, "must be mse, xent, or a function"),
    "a generator": (small, generator, {}, "a generator cannot be repeated"),
    "three parts": (small, lambda rng: line(rng)[:3], {}, "task 0 of train: 3 parts, needed"),
    "the wrong width": (lambda: small(1, 3), line, {}, "does not take support x of the shape"),
    "broadcasting": (
        lambda: small(2),
        line,
        {},
        r"the model's outputs have the shape \[5, 2\], and the labels \[5, 1\]",
    ),
    "labels out of range": (lambda: small(2, 2), blobs, {"loss": "xent"}, "labels from 0 to 2, and the model has 2"),
    "probabilities": (
        lambda: model(lambda: L.Dense(3, "softmax"), shape=(2,), dtype="float32"),
        blobs,
        {"loss": "xent"},
        "leave the softmax out",
    ),
    "a nan": (small, sometimes(nan_in), {}, r"task \d+ of train: support x: holds a nan"),
    "another shape": (small, sometimes(shorter), {}, r"task \d+ of train: query x has the shape \[\(6, 1\)\]"),
    "an error": (small, sometimes(raising), {}, "your task raised KeyError"),
    "an unknown flag": (small, line, {"inner_lr": 0.1}, "no flag inner_lr"),
    "a model of doubles": (
        lambda: model(lambda: L.Dense(1), shape=(1,)),
        line,
        {},
        "computes in float64, and the run in float32: give dtype='float64', or build it in float32",
    ),
    "a run of doubles": (small, line, {"dtype": "float64"}, "in float32, and the run in float64: give dtype='float32'"),
    "mixed precision": (
        lambda: model(lambda: L.Dense(1), shape=(1,), dtype="mixed_bfloat16"),
        line,
        {},
        "computes in bfloat16, and the run in float32: build it in float32",
    ),
    "a support y that would be broadcast": (
        small,
        lambda rng: (np.zeros([4, 1]), np.zeros([4]), np.zeros([4, 1]), np.zeros([4, 1])),
        {},
        r"support y: the model's outputs have the shape \[4, 1\], and the labels \[4\]",
    ),
    "lists": (small, lambda rng: ([[1.0]], [[1.0]], [[1.0]], [[1.0]]), {}, "support x: holds a single number; make"),
    "no example": (small, lambda rng: (np.zeros([0, 1]),) * 4, {}, "support x: holds no example"),
    "texts": (small, lambda rng: (np.array([["a"]]),) * 4, {}, "support x: holds <U1, needed numbers"),
    "a loss in NumPy": (
        small,
        line,
        {"loss": lambda o, y: np.mean((o - y) ** 2)},
        "support y: Cannot convert a symbolic",
    ),
    "a loss through NumPy": (
        small,
        line,
        {"loss": lambda o, y: tf.constant(np.mean(o)) + tf.reduce_mean(o - y)},
        "the loss does not take the model's outputs and support y: Cannot convert a symbolic",
    ),
    "a loss of no tensor": (small, line, {"loss": lambda o, y: 0.0}, "returns float, needed a tensor"),
    "a loss of nothing": (small, line, {"loss": lambda o, y: tf.constant(0.0)}, "does not depend on any weight"),
    "a model of nothing": (lambda: ({"w": np.ones([1, 1])}, lambda w, x: x), line, {}, "does not depend on any weight"),
    "no outputs": (lambda: ({"w": np.ones([1, 1])}, lambda w, x: None), line, {}, "the model returns NoneType, needed"),
    "two outputs": (two_outputs, line, {}, "the model returns list, needed one tensor for loss='mse'"),
    "weights of text": (lambda: ({"w": "abc"}, lambda w, x: x), line, {}, "the weight w holds <U3, needed numbers"),
    "an adapt that raises": (small, line, {"adapt": lambda name: name.nothing}, "adapt raised AttributeError"),
    "a layer that raises": (
        lambda: model(lambda: L.Activation("threshold"), lambda: L.Dense(1), shape=(1,), dtype="float32"),
        line,
        {},
        r"calling Activation.call\(\). threshold\(\) missing",
    ),
    "no second derivative": (
        lambda: ({"w": np.ones([1, 1])}, lambda w, x: nearest(x @ w["w"])),
        line,
        {},
        "has no second derivative in TensorFlow .*ResizeNearestNeighborGrad.*stop_grad=True",
    ),
    "a logdir that is none": (small, line, {"logdir": None}, "logdir=None: must be a path"),
    "a text for a number": (small, line, {"update_lr": "0.1"}, "--update_lr='0.1': must be a number"),
    "a broken number": (small, line, {"num_updates": 1.5}, "--num_updates=1.5: must be a whole number"),
    "nothing for a number": (small, line, {"meta_lr": None}, "--meta_lr=None: must be a number"),
    "a number for a switch": (small, line, {"stop_grad": 1}, "--stop_grad=1: must be True or False"),
    "a switch for a number": (small, line, {"seed": True}, "--seed=True: must be a whole number"),
    "a number for a text": (small, line, {"algorithm": 3}, "--algorithm=3: must be a text"),
    "no loss": (small, line, {"loss": None}, "loss=None: must be mse, xent, or a function"),
    "weights in a list": (lambda: ([np.zeros([1, 1])], lambda w, x: x @ w[0]), line, {}, "a dict of arrays"),
    "no tasks": (small, None, {}, "tasks: None, needed a function"),
    "a task without rng": (small, lambda: 3, {}, "task 0 of train: your task raised TypeError"),
    "an official data source": (small, line, {"datasource": "omniglot"}, "maml.train takes your tasks"),
    "an official network's flag": (small, line, {"num_filters": 8}, "--num_filters=8 is for the official networks"),
    "shots": (small, line, {"update_batch_size": 5}, "it is your model and your tasks that decide"),
    "a normalization": (small, line, {"norm": "batch_norm"}, "your model has its own normalizations"),
    "Reptile": (small, line, {"algorithm": "reptile"}, "maml, anil, metasgd"),
    "nothing adapted": (small, line, {"adapt": lambda name: False}, "chooses none of the weights"),
    "bilinear upsampling": (
        lambda: model(
            lambda: L.Conv2D(1, 1),
            lambda: L.UpSampling2D(2, interpolation="bilinear"),
            shape=(2, 2, 1),
            dtype="float32",
        ),
        line,
        {},
        "no exact second derivative",
    ),
    "max pooling by XLA": (
        lambda: model(
            lambda: L.Reshape((1, 1, 1)), L.GlobalMaxPooling2D, lambda: L.Dense(1), shape=(1,), dtype="float32"
        ),
        line,
        {"jit_compile": True},
        "XLA's is inexact",
    ),
    "a convolution by XLA": (
        lambda: model(lambda: L.Reshape((1, 1)), lambda: L.Conv1D(1, 1), L.Flatten, shape=(1,), dtype="float32"),
        line,
        {"jit_compile": True},
        "jit_compile=True: this model or loss cannot be compiled so",
    ),
    "a regularizer": (
        lambda: model(lambda: L.Dense(1, kernel_regularizer="l2"), shape=(1,), dtype="float32"),
        line,
        {},
        "has a regularizer",
    ),
}


def past_the_head():
    """A model some of which goes past the head's input."""
    inputs = keras.Input((4,))
    hidden = L.Dense(3)(inputs)
    return keras.Model(inputs, L.Add()([L.Dense(2)(hidden), L.Dense(2, trainable=False)(inputs)]))


CUT = {
    "conv, batch-norm, pooling, dropout": (IMAGE, (*LAYERS["max pooling"][1:-1], L.BatchNormalization, L.Flatten)),
    "nested": ((4,), (lambda: model(lambda: L.Dense(3, "tanh"), lambda: L.Dropout(0.5)),)),
}


@pytest.mark.parametrize("name", CUT)
def test_a_body_that_is_not_adapted_is_computed_once_for_each_set(name):
    shape, layers = CUT[name]
    net = model(*layers, lambda: L.Dense(2), lambda: L.Activation("softplus"), shape=shape)
    config = Config.from_flags({"datasource": "own", "loss": "mse", "norm": "None", "num_updates": 3})
    learner = OwnMAML(config.replace(dtype="float64", update_lr=0.1), KerasModel(net, "head", "float64"), "mse")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 6, *shape)), rng.normal(size=(2, 6, 2))
    episodes = Episodes(*map(tf.constant, (x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])))
    weights = learner.init_state().weights
    calls, body = [], learner.parts[0]
    learner.parts = (lambda *given: calls.append(1) or body(*given)), learner.parts[1]
    loss, gradient = learner.gradient(weights, episodes, 0)
    assert len(calls) == 4  # two tasks, two sets
    task = next(iter(episodes.tasks()))
    adapted = learner.adapt(weights, task.inputa, task.labela, 3)
    learner.parts = None
    in_every_step, expected = learner.gradient(weights, episodes, 0)
    np.testing.assert_allclose(loss, in_every_step, rtol=1e-12)
    for weight, value in expected.items():
        np.testing.assert_allclose(gradient[weight], value, rtol=1e-9, atol=1e-12)
    for weight, value in learner.adapt(weights, task.inputa, task.labela, 3).items():
        np.testing.assert_allclose(adapted[weight], value, rtol=1e-9)


def test_a_model_that_is_no_body_and_head_stays_whole():
    inputs = keras.Input((4,))
    twice = L.Dense(4)
    masked = model(lambda: L.Masking(), lambda: L.LSTM(2), lambda: L.Dense(1), shape=SERIES)
    for net in (past_the_head(), keras.Model(inputs, twice(twice(inputs))), masked, model(lambda: L.Dense(2))):
        assert KerasModel(net, "head").parts() is None


def test_what_xla_compiles_is_what_tensorflow_computes(tmp_path):
    learned, tested = [], []
    for jit_compile in (False, True):
        net = model(lambda: L.Dense(5, "tanh"), L.LayerNormalization, lambda: L.Dense(1), shape=(1,), dtype="float32")
        folder = tmp_path / str(jit_compile)
        learner = maml.train(net, line, jit_compile=jit_compile, metatrain_iterations=5, val_tasks=0, logdir=folder)
        assert learner.model.side_by_side is jit_compile
        learned.append(learner.weights)
        tested.append(learner.test(line, 20).values)
    for weight, value in learned[0].items():
        np.testing.assert_allclose(learned[1][weight], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tested[1], tested[0], rtol=1e-4)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, tasks, flags, said = BAD[name]
    with pytest.raises(UserError, match=said) as caught:
        maml.train(make(), tasks, **TINY | flags)
    assert "\n" not in str(caught.value)


class Counting:
    """Tasks from an object that counts them."""

    calls = 0

    def __call__(self, rng):
        """A line."""
        self.calls += 1
        return line(rng)


counting = Counting()


def test_another_model_in_the_same_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    maml.train(small(), line, logdir="x", **TINY)
    other = model(lambda: L.Dense(9, "tanh"), lambda: L.Dense(1), shape=(1,), dtype="float32")
    with pytest.raises(UserError, match="holds a run of another model"):
        maml.train(other, line, logdir="x", **TINY)
    with pytest.raises(UserError, match="adapts other weights"):
        maml.train(small(), line, logdir="x", adapt="head", **TINY)
    for _ in range(2):  # the same loss goes on
        maml.train(small(), line, logdir="y", loss=absolute, **TINY)
    with pytest.raises(UserError, match="with another loss"):
        maml.train(small(), line, logdir="y", loss=fourth_power, **TINY)
    for _ in range(2):  # objects at another address, and a line that has changed otherwise
        maml.train(small(), line, logdir="z", loss=keras.losses.Huber(), **TINY)
    maml.train(small(), lambda rng: line(rng), logdir="u", loss=lambda o, y: tf.reduce_mean(abs(o - y)), **TINY)
    for _ in range(2):  # an object that changes
        maml.train(small(), counting, logdir="v", **TINY)
    assert counting.calls
    more = TINY | {"metatrain_iterations": 2}
    maml.train(small(), lambda rng: line(rng), loss=lambda o, y: tf.reduce_mean(abs(o - y)), logdir="u", **more)
    capsys.readouterr()
    assert run_here("--train=False", "--logdir=x") == 1
    assert "holds a run of your own model; in Python: maml.load(" in capsys.readouterr().err
    with pytest.raises(UserError, match="a run of your own model"):
        maml.load("x")
    assert maml.load("x", model=small()).test(line, 4).measure == "loss"


def test_more_steps_than_learned_rates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner = maml.train(small(), line, learn_rates="step", adapt="head", **TINY)
    x, y, *_ = line(np.random.default_rng(0))
    assert np.isfinite(learner.adapt(x, y, num_updates=7).predict(x)).all()


@pytest.mark.parametrize("name", ["machines.py", "metasgd.py"])
def test_examples_learn(name, tmp_path):
    source = (ROOT / "examples" / name).read_text()
    shorter = source.replace("metatrain_iterations=2000", "metatrain_iterations=400")
    (tmp_path / name).write_text(shorter)
    done = subprocess.run(
        [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    means = [float(row.split("±")[0].split()[-1]) for row in done.stdout.splitlines() if "set  " in row]
    assert means[-1] < 0.8 * means[0]


def first_blocks(network):
    """Of MobileNetV2 the part with a layer of every kind: the whole takes half a minute to trace."""

    def shorter(*arguments, **options):
        whole = network(*arguments, **options)
        return keras.Model(whole.input, whole.get_layer("block_2_add").output)

    return shorter


@pytest.mark.parametrize("name", ["lstm.py", "transformer.py", "pendulum.py", "photos.py", "augmented.py"])
def test_the_other_examples_run(name, tmp_path, monkeypatch, capsys):
    """Two iterations of each; docs/your_own_model.md says what they reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.applications, "MobileNetV2", first_blocks(keras.applications.MobileNetV2))
    write_class_folders(tmp_path / "photos", {"train": 5, "val": 5, "test": 5}, 4, size=32)
    monkeypatch.setattr("sys.argv", [name, "photos", "2"])
    source = (ROOT / "examples" / name).read_text()
    shorter = re.sub(r"(metatrain_iterations=)\d+", r"\g<1>2", source)
    shorter = shorter.replace("20", "5").replace("(21)", "(6)") if name == "lstm.py" else shorter  # values of a wave
    shorter = re.sub(r"(learner\.test\(\w+, )\d+", r"\g<1>20", shorter)
    exec(compile(shorter, name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "Trained: 2 iterations" in printed and "(20 tasks)" in printed
