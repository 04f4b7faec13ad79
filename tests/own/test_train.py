"""A training of one's own model resumes, and does not go on as another one."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.errors import UserError
from maml.training.checkpoints import list_checkpoints
from tests.command_line import run_here
from tests.own.fixtures import TINY, L, line, model, small


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


def absolute(outputs, y):
    return tf.reduce_mean(tf.abs(outputs - y))


def fourth_power(outputs, y):
    return tf.reduce_mean((outputs - y) ** 4)


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


def test_many_trainings_in_a_process_are_not_warned_of(tmp_path):
    """TensorFlow warns of a function that is traced again and again, and these are other functions."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        for number in range(6):
            learner = maml.train(small(), line, logdir=tmp_path / str(number), **TINY | {"metatrain_iterations": 1})
            learner.test(line, 2)
    finally:
        tf.get_logger().removeHandler(handler)
    assert not [message for message in said if "retracing" in message]
