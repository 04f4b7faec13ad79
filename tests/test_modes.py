"""The same numbers however they are computed: eager, in a graph, by XLA; tasks together or one by one; both precisions."""

import numpy as np
import pytest
import tensorflow as tf

from maml.data_generator import Episodes
from maml.maml import MAML, TrainState
from maml.networks import Weights
from maml.optimizer import adam_init
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

CASES = [
    ("sinusoid", "None"),
    ("fc", "batch_norm"),
    ("strided, mean head", "batch_norm"),
    ("strided, flat head", "layer_norm"),
    ("pooled, mean head", "None"),
    ("pooled, mean head", "layer_norm"),
    ("pooled, flat head", "batch_norm"),
]
# Rounding: 4e-14 and 9e-6 were the largest errors seen.
TOLERANCES = {"float64": 1e-10, "float32": 5e-5}

per_case = pytest.mark.parametrize(("network", "norm"), CASES)
per_precision = pytest.mark.parametrize("dtype", list(TOLERANCES))


def setting(network: str, norm: str, dtype: str) -> tuple[MAML, Weights, Episodes]:
    model = tiny_model(network, norm, dtype, num_updates=2)
    return model, tiny_weights(model, 6), tiny_episodes(model, 7, tasks=3)


def everything(model: MAML, compiled) -> Weights:
    """Meta-loss and meta-gradient, one meta-update, and an evaluation, each through `compiled`, by name."""

    def step(weights, episodes):
        loss, gradient = model.meta_gradient(weights, episodes)
        state = TrainState(weights, adam_init(weights), adam_init(weights))
        state, _ = model.metatrain_update(state, episodes)
        measures = model.evaluate(weights, episodes, 2)
        named = {f"gradient {name}": value for name, value in gradient.items()}
        return named | {f"mean {name}": value for name, value in state.metatrain.m.items()} | {"loss": loss} | measures

    return compiled(step)


@per_precision
@per_case
def test_graph_and_xla_equal_eager(network, norm, dtype):
    model, weights, episodes = setting(network, norm, dtype)
    eager = everything(model, lambda step: step)(weights, episodes)
    for jit in (False, True):
        results = everything(model, tf.function(jit_compile=jit, autograph=False))(weights, episodes)
        assert set(results) == set(eager)
        assert relative_error(results, eager) < TOLERANCES[dtype], jit


@per_precision
@per_case
def test_tasks_together_equal_tasks_one_by_one(network, norm, dtype):
    """Losses, outputs and fast weights of a task do not depend on the others; the gradient is their mean."""
    model, weights, episodes = setting(network, norm, dtype)
    tolerance = TOLERANCES[dtype]
    together = model.task_metalearn(weights, episodes, 2, every_step=True)
    loss, gradient = model.meta_gradient(weights, episodes)
    tasks, losses, total = len(episodes.inputa), [], dict.fromkeys(weights, 0.0)
    for index in range(tasks):
        alone = Episodes(*(tensor[index : index + 1] for tensor in episodes))
        outcome = model.task_metalearn(weights, alone, 2, every_step=True)
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
    results = {dtype: everything(setting(network, norm, dtype)[0], lambda step: step) for dtype in TOLERANCES}
    single, double = (results[dtype](*setting(network, norm, dtype)[1:]) for dtype in ("float32", "float64"))
    assert relative_error(single, double) < TOLERANCES["float32"]


def test_tasks_of_many_images_equal_tasks_of_few():
    """A task's numbers are its own, too, where its convolutions share kernels with forty others."""
    model = tiny_model("strided, mean head", "batch_norm", num_updates=1)
    weights, episodes = tiny_weights(model, 6), tiny_episodes(model, 8, tasks=41)
    together = model.task_metalearn(weights, episodes, 1).lossesb[0]
    alone = [model.task_metalearn(weights, Episodes(*(t[i : i + 1] for t in episodes)), 1).lossesb[0] for i in (0, 40)]
    np.testing.assert_allclose(together[0], alone[0][0], rtol=TOLERANCES["float64"])
    np.testing.assert_allclose(together[40], alone[1][0], rtol=TOLERANCES["float64"])
