"""The README's figures: what is drawn, and from which runs."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import figures
from maml.config import Config
from maml.maml import MAML
from maml.training import checkpoints, runs
from maml.training.checkpoints import Progress

pytest.importorskip("matplotlib")


def results(steps: int, **config) -> dict:
    mean = np.linspace(0.2, 0.9, steps)
    return {"mean": mean, "ci95": mean / 10, "tasks": 600, "config": {"num_classes": 5, "num_updates": 1} | config}


def test_the_figures_are_small_pngs(tmp_path):
    grid, support = np.linspace(-5, 5, 50), np.linspace(-4, 4, 10)
    figures.draw_curves({name: [grid] * 11 for name in figures.LOOKS}, support, grid, tmp_path / "curves.png")
    figures.draw_steps({name: results(11) for name in figures.LOOKS}, tmp_path / "steps.png")
    figures.draw_omniglot(results(11), {0: 0.2, 100: 0.7}, {500: 0.9}, tmp_path / "omniglot.png")
    assert figures.main(["family", f"--output={tmp_path}"]) == 0
    for name in ("curves", "steps", "omniglot", "family"):
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < 150_000
        assert min(Image.open(path).size) >= 400


def fake_run(config: Config, iteration: int):
    """A run folder with untrained weights."""
    folder, _ = runs.open_run(config)
    runs.record_run(folder, config)
    checkpoints.save(folder, MAML(config), MAML(config).init_state(), Progress(iteration, np.zeros([0, 2]), -np.inf))
    return folder


def test_a_missing_run_is_trained_and_a_run_that_went_on_is_tested_again(tmp_path, monkeypatch):
    """`run_main` stands in for main.py and keeps what it was asked for."""
    asked = []

    def run_main(flags):
        config = Config.from_flags(flags)
        asked.append("train" if config.train else "test")
        if config.train:
            fake_run(config, 10)
            return
        folder, config = runs.find_run(flags)
        newest = checkpoints.choose(folder, "latest", -1).prefix.name
        table = figures.results_file(folder, config, ".json")
        table.write_text(json.dumps({"checkpoint": newest, "split": "test"}))

    monkeypatch.setattr(figures, "run_main", run_main)
    wanted = figures.sinusoid_runs(str(tmp_path), 10)
    folders = [figures.ready(flags)[0] for flags in wanted.values()]
    assert len(set(folders)) == 3
    assert asked == ["train", "test"] * 3
    assert figures.ready(wanted["oracle"])[1].baseline == "oracle"
    assert len(asked) == 6
    fake_run(Config.from_flags(wanted["oracle"]), 20)
    assert figures.ready(wanted["oracle"])[2]["checkpoint"] == "model20"
    assert asked[6:] == ["test"]


@pytest.mark.parametrize("baseline", ["None", "oracle"])
def test_curves_start_at_the_network_and_adapt_to_the_support_points(tmp_path, baseline):
    """A large rate fits the task's points better; the first curve is the network as it stands."""
    flags = {"norm": "None", "update_batch_size": 10, "update_lr": 0.02, "baseline": baseline}
    config = Config.from_flags(flags | {"logdir": str(tmp_path), "pretrain_iterations": 1})
    folder = fake_run(config, 1)
    x = np.linspace(-5, 5, 10)
    curves = figures.curves(folder, config, x, x)
    assert [curve.shape for curve in curves] == [(10,)] * (figures.STEPS + 1)
    model = MAML(config)
    known = [figures.AMPLITUDE, figures.PHASE] if baseline == "oracle" else []
    inputs = tf.constant([[point, *known] for point in x], tf.float32)
    np.testing.assert_allclose(curves[0], np.ravel(model.model.apply(model.init_state().weights, inputs)), atol=1e-6)
    error = [np.mean((curve - figures.true_function(x)) ** 2) for curve in curves]
    assert error[-1] < error[0]
