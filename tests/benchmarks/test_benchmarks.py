"""The benchmarks compare what they say: the same meta-gradient, the right count, a report that is whole."""

import functools
import json
import time

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import growth, lower_bound, measure, official_structure, speed
from benchmarks.formulations import BFLOAT16, OURS, PLAIN, WHOLE, build
from benchmarks.settings import ALL, random_data
from benchmarks.worker import Worker
from maml.algorithms.adam import adam_init
from maml.config import Config
from maml.models.official import Network
from maml.training.updates import update
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

KINDS = [
    ("sinusoid", "None"),
    ("fc", "batch_norm"),
    ("strided, mean head", "batch_norm"),
    ("strided, mean head", "layer_norm"),
    ("pooled, flat head", "batch_norm"),
]


@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_the_official_structure_gives_our_meta_loss_and_meta_gradient(kind, norm):
    model = tiny_model(kind, norm, num_updates=2 if kind in ("sinusoid", "fc") else 1)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2)
    loss, gradient = model.gradient(weights, episodes, 0)
    official = tf.function(
        lambda: official_structure.meta_gradient(model.config, model.model, weights, episodes), autograph=False
    )
    official_loss, official_gradient = official()
    np.testing.assert_allclose(official_loss, loss, rtol=1e-9)
    assert official_gradient.keys() == gradient.keys()
    assert relative_error(official_gradient, gradient) < 1e-9


@pytest.mark.parametrize("stop_grad", [False, True])
def test_the_official_structure_makes_our_meta_update(stop_grad):
    # miniImageNet, because its meta-gradient is clipped; the network is a small one all the same.
    model = tiny_model("fc", "None", stop_grad=stop_grad)
    config = model.config.replace(datasource="miniimagenet")
    model = type(model)(config, model.model)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2)
    weights |= {"w4": 1000 * weights["w4"]}
    state = model.init_state()._replace(weights=weights)
    assert max(tf.reduce_max(tf.abs(g)) for g in model.gradient(weights, episodes, 0)[1].values()) > 10
    ours, loss = update(model, state, episodes, 0)
    theirs, adam, official_loss = official_structure.metatrain_update(
        config, model.model, weights, adam_init(weights), episodes
    )
    np.testing.assert_allclose(official_loss, loss, rtol=1e-9)
    assert relative_error(theirs, ours.weights) < 1e-9
    assert relative_error(adam.m, ours.metatrain.m) < 1e-9


def test_every_step_of_the_official_structure_leaves_the_meta_gradient_as_it_is():
    model = tiny_model("strided, mean head", "batch_norm", num_updates=2, test_num_updates=3)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2)
    losses, gradient = official_structure.meta_gradient(model.config, model.model, weights, episodes, every_step=True)
    np.testing.assert_allclose(losses, tf.reduce_mean(model.evaluate(weights, episodes, 3)["loss"], 0)[1:], rtol=1e-9)
    assert relative_error(gradient, model.gradient(weights, episodes, 0)[1]) < 1e-9


def test_multiply_adds_by_hand():
    """Counts layer by layer.

    fc 3-4-5: F₁ = 12, F = 12 + 20 = 32. With 2 tasks, 3 steps, 1-shot 5-way and 2 queries a class:
    2·[3·5·(9·32 − 5·12) + 10·(3·32 − 12)] = 2·[15·228 + 10·84] = 8520.
    Strided, 8 pixels, 2 channels, 3 filters, mean head: maps of 4, 2, 1, 1 pixels;
    F₁ = 16·18·3 = 864, then 4·27·3 = 324, 81, 81, head 3·5 = 15.
    Pooled, 32 pixels, flat head: convolutions on 32, 16, 8, 4 pixels, head 3·2²·5 = 60.
    """
    config = Config(
        datasource="omniglot", meta_batch_size=2, num_updates=3, num_classes=5, update_batch_size=1, query_size=2
    )
    dense = Network("fc", 3, 5, (4,), "None")
    assert lower_bound.meta_update_multiply_adds(config, dense) == 8520
    strided = Network("conv", 8 * 8 * 2, 5, (3,), "batch_norm", 8, 2)
    assert [layer.multiply_adds for layer in lower_bound.layers(strided)] == [864, 324, 81, 81, 15]
    pooled = Network("conv", 32 * 32, 5, (3,), "batch_norm", 32, 1, max_pool=True, flat_head=True)
    assert [layer.multiply_adds for layer in lower_bound.layers(pooled)] == [1024 * 27, 256 * 81, 64 * 81, 16 * 81, 60]


@pytest.mark.parametrize("kind", ["strided, mean head", "pooled, flat head"])
def test_the_products_of_the_lower_bound_are_those_of_a_gradient(kind):
    """Three products a layer, two in the first: as many multiply-adds as 3F − F₁ without the head."""
    network = tiny_model(kind, "batch_norm").model
    config = Config(datasource="omniglot", meta_batch_size=2)
    bare = lower_bound.products(config, network, examples=4)
    bare.run()
    convolutions = [layer.multiply_adds for layer in lower_bound.layers(network)[:-1]]
    tasks = 1 if network.max_pool else 2
    assert bare.multiply_adds == tasks * 4 * (3 * sum(convolutions) - convolutions[0])


def test_calls_take_turns():
    order: list[str] = []
    times = measure.by_turns({name: functools.partial(order.append, name) for name in "abc"}, 3, seconds=60)
    assert "".join(order) == "aabbcc" * 3
    assert [len(values) for values in times.values()] == [3, 3, 3]


def test_different_losses_are_not_compared():
    speed.agree({PLAIN: 1.0, OURS: 1.0005})
    for loss in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match="ours"):
            speed.agree({PLAIN: 1.0, OURS: loss})


def test_the_sinusoid_is_measured_as_training_runs_it():
    config = Config(norm="None", update_batch_size=3, meta_batch_size=2)
    steps = {name: build(name, config, random_data(config)) for name in (PLAIN, OURS, WHOLE)}
    losses = {name: step.run(1) for name, step in steps.items()}
    speed.agree(losses)
    assert steps[OURS].updates == config.print_interval


class InThisProcess:
    """Stands in for a `Worker`, whose process takes seconds to start."""

    def __init__(self, formulation: str, config: Config):
        step = build(formulation, config, random_data(config))
        self.updates, self.run = step.updates, functools.partial(step.run, step.updates)
        times = {"first_call_s": 1.0, "start_to_first_step_s": 2.0}
        self.first = times | {"loss": step.run(1), "memory_before": 1 << 20, "memory_peak": 3 << 20}

    def close(self) -> None:
        """Nothing to end."""


def test_a_worker_measures_in_its_own_process():
    config = ALL["toy"].config
    worker = Worker(OURS, config)
    worker.run()
    worker.close()
    expected = build(OURS, config, random_data(config)).run(1)
    np.testing.assert_allclose(worker.first["loss"], expected, rtol=1e-5)
    assert 0 < worker.first["memory_before"] <= worker.first["memory_peak"]
    assert worker.first["first_call_s"] < worker.first["start_to_first_step_s"]


def test_a_worker_that_fails_says_so():
    with pytest.raises(RuntimeError, match="nonsense"):
        Worker("nonsense", ALL["toy"].config)


def test_speed_writes_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "DEFAULT", (PLAIN, OURS))
    monkeypatch.setattr(speed, "Worker", InThisProcess)
    monkeypatch.setattr(speed, "alone", lambda function, name, *arguments: function(ALL[name], *arguments))
    also = ["--also", BFLOAT16]
    assert speed.main(["--settings", "toy", "--repetitions", "2", "--output", str(tmp_path), *also]) == 0
    values = json.loads((tmp_path / "speed.json").read_text())
    row = values["settings"]["toy"]
    assert row.keys() >= {"seconds", "bound_seconds", "episodes_per_second", "training", "processes"}
    assert row["seconds"].keys() == {PLAIN, OURS, BFLOAT16}
    assert values["machine"]["tensorflow"] == tf.__version__
    text = (tmp_path / "speed.md").read_text()
    assert f"| {ALL['toy'].title} |" in text
    assert "| official structure, ms | ours, ms | official / ours | ours, bfloat16, ms |" in text
    assert "toy: plain" in capsys.readouterr().out


class Sleeper:
    """Stands in for a `Worker` and computes nothing; each takes longer than the one before it."""

    made = 0

    def __init__(self, formulation: str, config: Config):
        build(formulation, config, random_data(config))
        Sleeper.made += 1
        self.run = functools.partial(time.sleep, 0.002 * Sleeper.made)

    def close(self) -> None:
        """Nothing to end."""


def test_growth_writes_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "Worker", Sleeper)
    monkeypatch.setattr(growth, "SETTINGS", {"omniglot_5w1s": ALL["toy"]})
    monkeypatch.setattr(growth, "FACTORS", {"meta_batch_size": (2,), "num_updates": (1, 2)})
    assert growth.main(["--repetitions", "1", "--output", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "growth.json").read_text())["factors"]
    assert [point["value"] for point in points["num_updates"]] == [1, 2]
    assert points["meta_batch_size"][0]["ours"] == points["num_updates"][0]["ours"]  # the base, measured once
    assert "tasks 2" in (tmp_path / "growth.md").read_text()
