"""The same numbers however they are computed.

Eagerly, in a graph or by XLA; tasks together or one by one; in float64 or float32.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from maml import parallel as parts
from maml.config import Config
from maml.data_generator import Episodes
from maml.maml import MAML
from maml.models.official import Network, Weights
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
per_precision = pytest.mark.parametrize("dtype", list(TOLERANCES))


def setting(network: str, norm: str, dtype: str, tasks: int = 3) -> tuple[MAML, Weights, Episodes]:
    model = tiny_model(network, norm, dtype, num_updates=2 if (network, norm) in DENSE else 1)
    return model, tiny_weights(model, 6), tiny_episodes(model, 7, tasks)


def everything(model: MAML, compiled: Callable[[Callable], Any]) -> Callable[..., Weights]:
    """A function of weights and episodes, through `compiled`: meta-loss, meta-gradient and evaluation, by name."""

    def measure(weights, episodes):
        loss, gradient = model.meta_gradient(weights, episodes)
        return gradient | {"meta-loss": loss} | model.evaluate(weights, episodes, model.config.num_updates)

    return compiled(measure)


def eagerly(function: Callable) -> Callable:
    return function


def in_a_graph(function: Callable) -> Callable:
    return tf.function(function, autograph=False)


def by_xla(function: Callable) -> Callable:
    return tf.function(function, autograph=False, jit_compile=True)


@pytest.mark.parametrize(
    ("network", "norm", "dtype"),
    [(*case, "float64") for case in DENSE + CONVOLUTIONAL]
    + [(*DENSE[0], "float32"), (*DENSE[1], "float32"), (*CONVOLUTIONAL[0], "float32")],
)
def test_graph_equals_eager(network, norm, dtype):
    model, weights, episodes = setting(network, norm, dtype)
    eager, graph = (everything(model, mode)(weights, episodes) for mode in (eagerly, in_a_graph))
    assert set(graph) == set(eager)
    assert relative_error(graph, eager) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("network", "norm", "dtype"),
    [(*DENSE[0], "float64")] + [(*case, "float32") for case in (*DENSE[:2], CONVOLUTIONAL[0], CONVOLUTIONAL[2])],
)
def test_xla_equals_eager(network, norm, dtype):
    """One task, because XLA takes long to compile convolutions.

    XLA's own second derivative of max pooling rounds to 8 bits; a model that used it would be off by 2e-4 here.
    """
    model, weights, episodes = setting(network, norm, dtype, tasks=1)
    _, eager = model.meta_gradient(weights, episodes)
    _, xla = by_xla(model.meta_gradient)(weights, episodes)
    assert relative_error(xla, eager) < TOLERANCES[dtype]


@per_precision
@per_case
def test_tasks_together_equal_tasks_one_by_one(network, norm, dtype):
    """Losses, outputs and fast weights of a task do not depend on the others; the gradient is their mean."""
    model, weights, episodes = setting(network, norm, dtype)
    tolerance = TOLERANCES[dtype]
    steps = model.config.num_updates
    together = model.task_metalearn(weights, episodes, steps, every_step=True)
    loss, gradient = model.meta_gradient(weights, episodes)
    tasks, losses, total = len(episodes.inputa), [], dict.fromkeys(weights, 0.0)
    for index in range(tasks):
        alone = Episodes(*(tensor[index : index + 1] for tensor in episodes))
        outcome = model.task_metalearn(weights, alone, steps, every_step=True)
        pairs = [(together.outputa[index], outcome.outputa[0]), (together.lossesa[index], outcome.lossesa[0])]
        pairs += [(many[index], one[0]) for many, one in zip(together.outputbs, outcome.outputbs, strict=True)]
        pairs += [(many[index], one[0]) for many, one in zip(together.lossesb, outcome.lossesb, strict=True)]
        for many, one in pairs:
            np.testing.assert_allclose(many, one, rtol=tolerance, atol=tolerance)
        fast = {name: weight[index] for name, weight in together.fast_weights.items() if "/" not in name}
        assert relative_error(fast, {name: outcome.fast_weights[name][0] for name in fast}) < tolerance
        task_loss, task_gradient = model.meta_gradient(weights, alone)
        losses.append(task_loss)
        total = {name: total[name] + task_gradient[name] / tasks for name in total}
    np.testing.assert_allclose(loss, np.mean(losses), rtol=tolerance)
    assert relative_error(gradient, total) < tolerance


@per_case
def test_float32_equals_float64(network, norm):
    """Away from kinks, float32 differs by nothing but rounding, although it may run on other kernels."""
    cases = (setting(network, norm, dtype) for dtype in ("float32", "float64"))
    single, double = (everything(model, eagerly)(weights, episodes) for model, weights, episodes in cases)
    assert relative_error(single, double) < TOLERANCES["float32"]


def test_many_tasks_in_kernels_they_share_equal_tasks_alone():
    """A task's numbers are its own, too, where its convolutions share kernels with forty others."""
    model = tiny_model("strided, mean head", "batch_norm", num_updates=1)
    weights, episodes = tiny_weights(model, 6), tiny_episodes(model, 8, tasks=41)
    together = model.task_metalearn(weights, episodes, 1).lossesb[0]
    alone = [model.task_metalearn(weights, Episodes(*(t[i : i + 1] for t in episodes)), 1).lossesb[0] for i in (0, 40)]
    np.testing.assert_allclose(together[0], alone[0][0], rtol=TOLERANCES["float64"])
    np.testing.assert_allclose(together[40], alone[1][0], rtol=TOLERANCES["float64"])


@pytest.mark.parametrize(("network", "norm"), [CONVOLUTIONAL[0], CONVOLUTIONAL[3]])
def test_a_batch_in_parts_equals_the_whole_batch(network, norm, monkeypatch):
    model, weights, episodes = setting(network, norm, "float64", tasks=4)
    results = []
    for cores, size in ((1, 4), (2, 2)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert parts.part_size(model.network, *episodes.inputa.shape[:2]) == size
        results.append(everything(model, in_a_graph)(weights, episodes))
    assert relative_error(*results) < TOLERANCES["float64"]


def test_a_part_is_computed_by_the_function_that_was_given():
    """Not by one that AutoGraph generated from it."""
    files = []

    def compute(batch):
        files.append(inspect.currentframe().f_code.co_filename)
        return 2 * batch

    twice = parts.map_parts(compute, tf.range(6.0), 2, tf.range(2.0))
    np.testing.assert_array_equal(twice, [[0, 2], [4, 6], [8, 10]])
    assert set(files) == {__file__}


@pytest.mark.parametrize(
    ("flags", "on_two_cores", "on_sixteen"),
    [
        ({"datasource": "omniglot", "update_batch_size": 1, "meta_batch_size": 32}, 4, 2),
        ({"datasource": "omniglot", "update_batch_size": 1, "meta_batch_size": 16, "num_classes": 20}, 2, 1),
        ({"datasource": "omniglot", "update_batch_size": 1, "meta_batch_size": 7}, 1, 1),
        ({"datasource": "miniimagenet", "update_batch_size": 1}, 1, 1),
        ({"datasource": "sinusoid"}, 25, 25),
    ],
)
def test_parts_fit_the_cache_and_feed_the_cores(flags, on_two_cores, on_sixteen, monkeypatch):
    """First maps of 14², 14², 14² and 84² with 64, 64, 64 and 32 filters, of 5, 20, 5 and 5 images."""
    config = Config.from_flags(flags)
    for cores, size in ((2, on_two_cores), (16, on_sixteen)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        examples = config.num_classes * config.update_batch_size
        assert parts.part_size(Network.from_config(config), config.meta_batch_size, examples) == size


@pytest.mark.parametrize(
    ("network", "norm", "mode"), [(*DENSE[0], eagerly), (*DENSE[0], by_xla), (*CONVOLUTIONAL[3], in_a_graph)]
)
def test_recomputed_steps_give_the_same_gradient(network, norm, mode):
    model, weights, episodes = setting(network, norm, "float64")
    again = MAML(model.config.replace(recompute=True), model.network)
    expected, actual = (everything(each, mode)(weights, episodes) for each in (model, again))
    assert relative_error(actual, expected) < TOLERANCES["float64"]


@pytest.mark.parametrize(("network", "norm"), [CONVOLUTIONAL[0], CONVOLUTIONAL[3]])
def test_bfloat16_convolutions_round_and_no_more(network, norm):
    model, weights, episodes = setting(network, norm, "float32")
    rounded = dataclasses.replace(model.network, bfloat16=True)
    expected, outputs = (network.forward(episodes.inputa, weights) for network in (model.network, rounded))
    error = relative_error({"outputs": outputs}, {"outputs": expected})
    assert 1e-5 < error < 0.05  # eight bits, through four layers
    loss, gradient = MAML(model.config, rounded).meta_gradient(weights, episodes)
    for value in (outputs, loss, *gradient.values()):
        assert value.dtype == tf.float32
        assert np.isfinite(value).all()
