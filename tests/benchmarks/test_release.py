"""A training that is not done goes on from what is kept of it."""

import shutil

import numpy as np
import tensorflow as tf

from benchmarks import release
from maml.training import checkpoints
from maml.training.runs import find_run
from tests.command_line import run_here

FLAGS = ("--norm=None", "--val_tasks=0", "--meta_batch_size=2")


def weights_of(prefix) -> dict[str, np.ndarray]:
    """A checkpoint's tensors but those of the training."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "training" not in name}


def test_an_unfinished_run_goes_on_from_what_is_kept(tmp_path, monkeypatch, interpreted):
    """Adam's means are rounded, so the weights after two more updates differ by less than one update makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "UNFINISHED", tmp_path / "kept")
    assert run_here(*FLAGS, "--metatrain_iterations=20", "--logdir=run") == 0
    folder, _ = find_run({"logdir": "run", "train": False})
    for _ in range(2):  # the second takes the place of the first
        assert release.main(["run", "--unfinished"]) == 0
    [kept] = (tmp_path / "kept").iterdir()
    assert kept.name == folder.name
    assert sum(path.stat().st_size for path in kept.iterdir()) < 0.8 * checkpoint_size(folder)
    shutil.copytree(kept, tmp_path / "elsewhere" / kept.name)
    before = weights_of(checkpoints.choose(folder, "latest", -1).prefix)
    for logdir in ("run", "elsewhere"):
        assert run_here(*FLAGS, "--metatrain_iterations=22", f"--logdir={logdir}") == 0
    [whole, rounded] = [
        weights_of(checkpoints.choose(path, "latest", 22).prefix)
        for path in (folder, tmp_path / "elsewhere" / kept.name)
    ]
    for name, weight in whole.items():
        assert 0 < np.abs(rounded[name] - weight).max() < 0.02 * np.abs(weight - before[name]).max()


def checkpoint_size(folder) -> int:
    """Bytes of a run's newest checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("model20.*"))


def test_what_was_kept_stays_where_the_new_is_too_large(tmp_path, monkeypatch, capsys, interpreted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "UNFINISHED", tmp_path / "kept")
    for iterations in (10, 20):
        assert run_here(*FLAGS, f"--metatrain_iterations={iterations}", "--logdir=run") == 0
        assert release.main(["run", "--unfinished"]) == (0 if iterations == 10 else 1)
        monkeypatch.setattr(release, "LARGEST", 1000)
    assert capsys.readouterr().err.startswith("release: ")
    [kept] = (tmp_path / "kept").iterdir()
    assert checkpoints.choose(kept, "latest", -1).iteration == 10


def test_what_is_missing_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert release.main(["nothing", "--unfinished"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
