"""What does not fit is one line, before a training begins."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.errors import UserError
from tests.own.fixtures import TINY, L, blobs, line, model, nearest, small


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


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, tasks, flags, said = BAD[name]
    with pytest.raises(UserError, match=said) as caught:
        maml.train(make(), tasks, **TINY | flags)
    assert "\n" not in str(caught.value)
