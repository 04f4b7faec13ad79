"""The model against the second implementation in `reference.py`, in float64.

They share no code.
"""

from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.tiny import adapt_all, meta_gradient, relative_error, tiny_episodes, tiny_model, tiny_weights

TOLERANCE = 1e-10

SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sinusoid": ("sinusoid", "None", {"num_updates": 1}),
    "sinusoid, 10 steps": ("sinusoid", "None", {"num_updates": 10}),
    "sinusoid, batch-norm": ("sinusoid", "batch_norm", {"num_updates": 3}),
    "sinusoid, layer-norm": ("sinusoid", "layer_norm", {"num_updates": 3}),
    "sinusoid, first order": ("sinusoid", "None", {"num_updates": 3, "stop_grad": True}),
    "oracle": ("sinusoid", "None", {"num_updates": 2, "baseline": "oracle"}),
    "fc": ("fc", "batch_norm", {"num_updates": 3, "update_batch_size": 3}),
    "fc, layer-norm": ("fc", "layer_norm", {"num_updates": 2}),
    "Omniglot": ("strided, mean head", "batch_norm", {"num_updates": 2}),
    "Omniglot, 5 shots": ("strided, mean head", "batch_norm", {"num_updates": 1, "update_batch_size": 5}),
    "Omniglot, first order": ("strided, mean head", "batch_norm", {"num_updates": 3, "stop_grad": True}),
    "Omniglot, layer-norm": ("strided, mean head", "layer_norm", {"num_updates": 2}),
    "Omniglot, max-pool": ("pooled, mean head", "batch_norm", {"num_updates": 1}),
    "Omniglot, 7 classes": ("strided, mean head", "None", {"num_updates": 2, "num_classes": 7}),
    "miniImageNet": ("pooled, flat head", "batch_norm", {"num_updates": 3}),
    "miniImageNet, 5 shots": ("pooled, flat head", "batch_norm", {"num_updates": 1, "update_batch_size": 5}),
    "miniImageNet, first order": ("pooled, flat head", "batch_norm", {"num_updates": 2, "stop_grad": True}),
    "miniImageNet, layer-norm": ("pooled, flat head", "layer_norm", {"num_updates": 1}),
    "miniImageNet, strided": ("strided, flat head", "None", {"num_updates": 2}),
}


def assert_near(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", SETTINGS)
def test_model_equals_the_unroll(name):
    network, norm, flags = SETTINGS[name]
    model = tiny_model(network, norm, **flags)
    weights = tiny_weights(model, 4)
    episodes = tiny_episodes(model, 5, tasks=3 if network == "sinusoid" else 2, queries=6 if network == "fc" else None)
    setting, tasks, steps = reference.Setting.of(model), reference.tasks_of(episodes), flags["num_updates"]

    outcome = adapt_all(model, weights, episodes, steps, every_step=True)
    for index, task in enumerate(tasks):
        expected = reference.adapt(setting, weights, task, steps)
        assert_near(outcome.outputa[index], expected.outputa)
        assert_near(outcome.lossa[index], expected.lossa)
        for step in range(steps):
            assert_near(outcome.outputbs[step][index], expected.outputbs[step])
            assert_near(outcome.lossesb[step][index], expected.lossesb[step])
        for weight in weights:
            assert_near(outcome.fast_weights[weight][index], expected.weights[weight])

    loss, gradient = meta_gradient(model, weights, episodes)
    expected_loss, expected_gradient = reference.meta_gradient(setting, weights, tasks, steps)
    assert_near(loss, expected_loss)
    assert set(gradient) == set(weights)
    assert relative_error(gradient, expected_gradient) < TOLERANCE
    for weight in weights:
        scale = np.abs(expected_gradient[weight]).max() + 1e-3
        assert np.abs(gradient[weight] - expected_gradient[weight]).max() < TOLERANCE * scale, weight


def test_last_step_only_is_the_last_of_every_step():
    model = tiny_model("strided, mean head", "batch_norm", num_updates=2)
    weights, episodes = tiny_weights(model, 4), tiny_episodes(model, 5)
    every = adapt_all(model, weights, episodes, 3, every_step=True)
    last = adapt_all(model, weights, episodes, 3)
    assert len(every.lossesb) == 3 and len(last.lossesb) == len(last.outputbs) == 1
    assert_near(last.lossesb[0], every.lossesb[2])
    assert_near(last.outputbs[0], every.outputbs[2])


def test_evaluate_reports_support_before_and_query_after():
    """Column 0 is the support set under θ, column j the query set after j steps, every task by itself."""
    model = tiny_model("strided, mean head", "batch_norm", num_classes=5, update_batch_size=2)
    weights, episodes = tiny_weights(model, 4), tiny_episodes(model, 5, tasks=3, queries=3)
    measures = model.evaluate(weights, episodes, 2)
    setting = reference.Setting.of(model)
    for index, task in enumerate(reference.tasks_of(episodes)):
        expected = reference.adapt(setting, weights, task, 2)
        assert_near(measures["loss"][index], [expected.lossa, *expected.lossesb])
        pairs = [(expected.outputa, task[1])] + [(outputs, task[3]) for outputs in expected.outputbs]
        right = [np.mean(np.argmax(outputs, 1) == np.argmax(labels, 1)) for outputs, labels in pairs]
        assert_near(measures["accuracy"][index], right)


def test_pretraining_is_on_the_support_loss_before_adaptation():
    model = tiny_model("strided, mean head", "batch_norm", pretrain_iterations=1)
    weights, episodes = tiny_weights(model, 4), tiny_episodes(model, 5)
    loss, gradient = model.gradient(weights, episodes, 0)
    setting, tasks = reference.Setting.of(model), reference.tasks_of(episodes)
    losses = [reference.adapt(setting, weights, task, 1).lossa for task in tasks]
    assert_near(loss, np.mean(losses))
    # A query set equal to the support set and no inner step at all: the meta-gradient is the same.
    still = tiny_model("strided, mean head", "batch_norm", update_lr=0.0)
    same = episodes._replace(inputb=episodes.inputa, labelb=episodes.labela)
    assert relative_error(gradient, still.gradient(weights, same, 0)[1]) < TOLERANCE
