"""The same numbers however they are computed.

Eagerly, in a graph or by XLA; tasks together or one by one; in float64 or float32.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from maml import machine, parallel
from maml.algorithms import losses
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError
from maml.maml import MAML
from maml.models.protocol import Model, Weights
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

DENSE = [("sinusoid", "None"), ("fc", "batch_norm"), ("sinusoid", "layer_norm")]
CONVOLUTIONAL = [
    ("strided, mean head", "batch_norm"),
    ("strided, flat head", "layer_norm"),
    ("pooled, mean head", "None"),
    ("pooled, flat head", "batch_norm"),
]
# Rounding: 4e-14 and 9e-6 were the largest errors seen.
TOLERANCES = {"float64": 1e-10, "float32": 5e-5}

per_case = pytest.mark.parametrize(("network", "norm"), DENSE + CONVOLUTIONAL)


def setting(network: str, norm: str, dtype: str, tasks: int = 2) -> tuple[MAML, Weights, Episodes]:
    model = tiny_model(network, norm, dtype, num_updates=2 if (network, norm) in DENSE else 1)
    return model, tiny_weights(model, 6), tiny_episodes(model, 7, tasks)


def everything(model: MAML, compiled: Callable[[Callable], Any]) -> Callable[..., Weights]:
    """A function of weights and episodes, through `compiled`: meta-loss, meta-gradient and evaluation, by name."""

    def measure(weights, episodes):
        loss, gradient = model.gradient(weights, episodes, 0)
        return gradient | {"meta-loss": loss} | model.evaluate(weights, episodes, model.config.num_updates)

    return compiled(measure)


@functools.cache
def together(network: str, norm: str) -> Weights:
    """Everything of the tasks of a float64 setting, in a graph; several tests compare with it."""
    model, weights, episodes = setting(network, norm, "float64")
    return everything(model, in_a_graph)(weights, episodes)


def eagerly(function: Callable) -> Callable:
    return function


def in_a_graph(function: Callable) -> Callable:
    return tf.function(function, autograph=False)


def by_xla(function: Callable) -> Callable:
    return tf.function(function, autograph=False, jit_compile=True)


@pytest.mark.parametrize(
    ("network", "norm", "dtype"),
    [(*DENSE[0], "float64")] + [(*case, "float32") for case in (*DENSE[:2], CONVOLUTIONAL[0], CONVOLUTIONAL[2])],
)
def test_xla_equals_eager(network, norm, dtype):
    """One task, because XLA takes long to compile convolutions.

    XLA's own second derivative of max pooling rounds to 8 bits; a model that used it would be off by 2e-4 here.
    """
    model, weights, episodes = setting(network, norm, dtype, tasks=1)
    _, eager = model.gradient(weights, episodes, 0)
    _, xla = by_xla(functools.partial(model.gradient, iteration=0))(weights, episodes)
    assert relative_error(xla, eager) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("network", "norm", "dtype"),
    [(*case, "float64") for case in DENSE + CONVOLUTIONAL] + [(*DENSE[0], "float32")],
)
def test_tasks_together_in_a_graph_equal_tasks_one_by_one_eagerly(network, norm, dtype):
    """What is measured of a task does not depend on the others; the gradient is the mean of theirs."""
    model, weights, episodes = setting(network, norm, dtype)
    tolerance, tasks = TOLERANCES[dtype], len(episodes.inputa)
    found = together(network, norm) if dtype == "float64" else everything(model, in_a_graph)(weights, episodes)
    total = dict.fromkeys([*weights, "meta-loss"], 0.0)
    for index in range(tasks):
        alone = everything(model, eagerly)(weights, Episodes(*(tensor[index : index + 1] for tensor in episodes)))
        np.testing.assert_allclose(found["loss"][index], alone["loss"][0], rtol=tolerance, atol=tolerance)
        total = {name: total[name] + alone[name] / tasks for name in total}
    assert relative_error({name: found[name] for name in total}, total) < tolerance


@pytest.mark.parametrize(("network", "norm"), DENSE)
def test_tasks_side_by_side_equal_tasks_one_after_another(network, norm, monkeypatch):
    """By tf.vectorized_map and by tf.map_fn."""
    model, weights, episodes = setting(network, norm, "float64")
    assert model.side_by_side
    beside = together(network, norm)
    monkeypatch.setattr(MAML, "side_by_side", False)
    assert relative_error(beside, everything(model, in_a_graph)(weights, episodes)) < TOLERANCES["float64"]


@pytest.mark.parametrize(("network", "norm"), [CONVOLUTIONAL[0], CONVOLUTIONAL[3]])
def test_convolutions_of_tasks_side_by_side_on_a_gpu_equal_those_of_one_after_another(network, norm, monkeypatch):
    """What TensorFlow computes on a GPU, computed on the processor."""
    model, weights, episodes = setting(network, norm, "float64")
    alone = together(network, norm)
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    assert model.side_by_side and model.compiled
    assert relative_error(everything(model, in_a_graph)(weights, episodes), alone) < TOLERANCES["float64"]


@per_case
def test_float32_equals_float64(network, norm):
    """Away from non-smooth points, float32 differs by nothing but rounding, although it may run on other kernels."""
    cases = (setting(network, norm, dtype) for dtype in ("float32", "float64"))
    single, double = (everything(model, eagerly)(weights, episodes) for model, weights, episodes in cases)
    assert relative_error(single, double) < TOLERANCES["float32"]


def test_a_task_is_computed_by_the_function_that_was_given():
    """Not by one that AutoGraph generated from it."""
    files = []

    def compute(number):
        files.append(inspect.currentframe().f_code.co_filename)
        return 2 * number

    for side_by_side in (False, True):
        twice = tf.function(
            lambda: parallel.map_tasks(compute, tf.range(6.0), tf.TensorSpec([]), side_by_side),  # noqa: B023
            autograph=False,
        )
        np.testing.assert_array_equal(twice(), [0, 2, 4, 6, 8, 10])
    assert set(files) == {__file__}


class Hidden(Model):
    """A network with weights of any names and ranks: y = relu(x·kernel + b)·w + c."""

    adapted = frozenset(["dense/kernel", "kernel", "b"])
    dtype = "float64"

    def init(self, seed):
        rng = np.random.default_rng(seed)
        shapes = {"dense/kernel": [2, 3], "b": [3], "kernel": [3, 1], "free": [1]}
        return {name: tf.constant(rng.normal(size=shape)) for name, shape in shapes.items()}

    def apply(self, weights, inputs, reference=None):
        return tf.nn.relu(inputs @ weights["dense/kernel"] + weights["b"]) @ weights["kernel"] + weights["free"]


@pytest.mark.parametrize("tasks", [2, 4])
def test_a_network_of_ones_own_adapts_what_it_names(tasks):
    """Whatever its weights are called, and with as many tasks as examples (4): every task's losses are its own."""
    rng = np.random.default_rng(0)
    config = Config(dtype="float64", norm="None", update_lr=0.1, num_updates=2)
    model, shapes = MAML(config, Hidden()), ([tasks, 4, 2], [tasks, 4, 1]) * 2
    weights, episodes = model.model.init(1), Episodes(*(tf.constant(rng.normal(size=shape)) for shape in shapes))
    together = model.evaluate(weights, episodes, 2)["loss"]
    for index, task in enumerate(episodes.tasks()):
        outcome = model.task_metalearn(weights, task, 2, every_step=True)
        np.testing.assert_allclose(together[index], [outcome.lossa, *outcome.lossesb], rtol=1e-12)
        moved = {name for name in weights if np.abs(outcome.fast_weights[name] - weights[name]).max() > 0}
        assert moved == Hidden.adapted
        assert all(outcome.fast_weights[name].shape == weights[name].shape for name in weights)


def test_a_network_of_ones_own_that_names_what_it_has_not_is_refused():
    """It would be meta-trained without adaptation, without a word."""
    network = Hidden()
    network.adapted = frozenset(["dense/kernels", "b"])
    with pytest.raises(UserError, match="adapts dense/kernels, and its weights are dense/kernel, b, kernel, free"):
        MAML(Config(dtype="float64", norm="None"), network).init_state()


@pytest.mark.parametrize("loss", ["mse", "xent", "mean_xent"])
def test_outputs_of_another_shape_than_the_labels_are_not_broadcast(loss):
    compute = getattr(losses, loss)
    more = (1,) if loss == "xent" else ()
    for outputs, labels in (([5], [5, 1]), ([5, 1], [5]), ([1, 3], [5, 3]), ([5, 3], [5, 1])):
        for called in (compute, tf.function(compute)):
            with pytest.raises(UserError, match=r"the model's outputs have the shape \[.*\], and the labels \["):
                called(tf.zeros(outputs), tf.zeros(labels), *more)
    assert compute(tf.zeros([5, 3]), tf.zeros([5, 3]), *more).shape == ()


def test_cores_are_those_that_the_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to cores")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert parallel.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert parallel.cores() == len(before)


@pytest.mark.parametrize(
    ("network", "norm", "mode"), [(*DENSE[0], eagerly), (*DENSE[0], by_xla), (*CONVOLUTIONAL[3], in_a_graph)]
)
def test_recomputed_steps_give_the_same_gradient(network, norm, mode):
    model, weights, episodes = setting(network, norm, "float64")
    again = MAML(model.config.replace(recompute=True), model.model)
    expected, actual = (
        mode(functools.partial(each.gradient, iteration=0))(weights, episodes)[1] for each in (model, again)
    )
    assert relative_error(actual, expected) < TOLERANCES["float64"]


@pytest.mark.parametrize(("network", "norm"), [CONVOLUTIONAL[0], CONVOLUTIONAL[3]])
def test_bfloat16_convolutions_round_and_no_more(network, norm):
    model, weights, episodes = setting(network, norm, "float32")
    rounded = dataclasses.replace(model.model, bfloat16=True)
    expected, outputs = (network.apply(weights, episodes.inputa[0]) for network in (model.model, rounded))
    error = relative_error({"outputs": outputs}, {"outputs": expected})
    assert 1e-5 < error < 0.05  # eight bits, through four layers
    loss, gradient = MAML(model.config, rounded).gradient(weights, episodes, 0)
    assert outputs.dtype == tf.float32
    for value in (outputs, loss, *gradient.values()):
        assert np.isfinite(value).all()
