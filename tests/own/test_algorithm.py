"""MAML's family for a model of one's own: what is adapted, computed once, compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.function_model import FunctionModel
from maml.models.keras_model import KerasModel, weight_names
from maml.own.algorithm import OwnMAML
from maml.own.tasks import OwnTasks
from tests.own.fixtures import IMAGE, LAYERS, SERIES, TINY, L, line, model, nearest


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


def test_an_operation_without_a_second_derivative_learns_to_first_order(tmp_path):
    learned = []
    for through in (nearest, tf.identity):
        made = ({"w": np.full([1, 1], 0.5)}, lambda w, x: through(x @ w["w"]))  # noqa: B023
        learned.append(maml.train(made, line, stop_grad=True, logdir=tmp_path / through.__name__, **TINY).weights["w"])
    np.testing.assert_array_equal(*learned)
    assert learned[0] != 0.5


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
