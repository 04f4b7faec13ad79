"""Every run that is given away can be loaded, adapted and tested, and says what it is."""

import json

import numpy as np
import pytest
import tensorflow as tf

import maml
from benchmarks import release
from maml.training import checkpoints
from tests.command_line import ROOT, run_here

RUNS = sorted(path for path in (ROOT / "pretrained").iterdir() if path.is_dir() and path.name != "unfinished")


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_it_is_loaded_and_adapts(folder):
    learner = maml.load(folder)
    rng = np.random.default_rng(0)
    if learner.config.classification:
        size, channels = learner.config.image_shape
        classes = learner.ways or 3
        support = (rng.random([classes, size, size, channels]) > 0.8).astype(np.float32)
        steps = {"num_updates": 1} if learner.config.adapts else {}
        adapted = learner.adapt(support, list(range(classes)), **steps)
        assert adapted.predict_proba(support).shape == (classes, classes)
        return
    x = np.linspace(-5, 5, 10)[:, None]
    y = 2 * np.sin(x - 1)
    before, after = (learner.adapt(x, y, num_updates=steps).predict(x) for steps in (0, 5))
    less = 1.0 if learner.config.pretraining else 0.3  # the baseline hardly moves
    assert np.mean((after - y) ** 2) < less * np.mean((before - y) ** 2)


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_it_is_small_and_says_what_it_is(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < release.LARGEST
    [tested] = folder.glob("test_*.json")
    results, text = json.loads(tested.read_text()), (folder / "README.md").read_text()
    assert results["tasks"] == 600 and results["split"] == "test"
    scale = 1 if results["measure"] == "mean squared error" else 100
    assert f"{scale * results['mean'][-1]:.4g}" in text and "python main.py" in text
    assert "/work" not in text + tested.read_text() + (folder / "run.json").read_text()
    names = {name for name, _ in tf.train.list_variables(str(checkpoints.list_checkpoints(folder)[0].prefix))}
    assert names and not any(name.startswith("training/") for name in names)
    assert ("ImageNet" in text) == (results["config"]["datasource"] == "miniimagenet")


def test_a_run_is_released(tmp_path, monkeypatch, interpreted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "PRETRAINED", tmp_path / "pretrained")
    flags = ("--norm=None", "--metatrain_iterations=3", "--meta_batch_size=2", "--val_tasks=0", "--logdir=logs")
    assert run_here(*flags, "--test_num_updates=1") == 0
    monkeypatch.setattr("sys.argv", ["release", "logs", "tiny", "--note=In no time."])
    assert release.main() == 0
    text = (tmp_path / "pretrained/tiny/README.md").read_text()
    assert "--meta_batch_size=2" in text and "3 iterations" in text and "In no time." in text
    whole, released = maml.load("logs"), maml.load("pretrained/tiny")
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(released.weights[name], weight)
