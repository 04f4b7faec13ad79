"""When the disk is full, a file is the old one or the new one, whole, and one line names it.

The cache, the prepared images and the downloads have such tests beside their others.
"""

import csv
import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maml import files
from maml.algorithms.adapting import TrainState
from maml.algorithms.protocol import Column
from maml.config import Config
from maml.errors import UserError
from maml.maml import MAML
from maml.training import checkpoints, evaluation
from maml.training.checkpoints import Progress
from maml.training.loop import restore_latest
from tests.command_line import ROOT, run_here


@pytest.fixture
def fail_at(monkeypatch):
    """Lets the n-th of all calls that bring files to the disk fail, and those after it."""

    def fail(number: int) -> None:
        calls = iter(range(10**6))

        def failing(call):
            def run(*arguments, **options):
                if next(calls) >= number:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return call(*arguments, **options)

            return run

        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, failing(getattr(os, name)))

    return fail


MODEL = MAML(Config(norm="None"))


def state_of(value: float) -> TrainState:
    state = MODEL.init_state()
    return tf.nest.map_structure(lambda tensor: tf.zeros_like(tensor) + tf.cast(value, tensor.dtype), state)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert "No space left" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("number", range(6))
def test_checkpoints(tmp_path, fail_at, number):
    """Two are synced and moved (index and data), then the list of all."""
    checkpoints.save(tmp_path, MODEL, state_of(1), Progress(10, np.zeros([0, 2]), 0.0))
    fail_at(number)
    message = refusal(checkpoints.save, tmp_path, MODEL, state_of(2), Progress(20, np.zeros([0, 2]), 0.0))
    assert ("model20" if number < 4 else "checkpoint") in message
    restored = restore_latest(tmp_path, MODEL)
    assert restored is not None
    assert restored[1].iteration == (10 if number < 4 else 20)
    values = {float(np.ravel(tensor)[0]) for tensor in tf.nest.flatten(restored[0])}
    assert values == ({1.0} if number < 4 else {2.0})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", range(6))
def test_results(tmp_path, fail_at, number):
    """The .csv, the .pkl and the .json are synced and moved one after another."""
    config, shape = Config(train=False, test_set=True), (4, 3)
    columns = [Column(key, key, key) for key in ("a", "b", "c")]

    def write(value: float) -> None:
        values = np.full(shape, value)
        evaluation.write_results(tmp_path, config, config, values, evaluation.TestResult.of(values), columns, "model1")

    write(1.0)
    fail_at(number)
    assert "test_ubs5_stepsize0.001" in refusal(write, 2.0)
    stem = tmp_path / "test_ubs5_stepsize0.001"
    with open(f"{stem}.csv", newline="") as file:
        found = [float(list(csv.reader(file))[1][0])]
    with open(f"{stem}.pkl", "rb") as file:
        found.append(pickle.load(file)["mses"][0, 0])
    found.append(json.loads((tmp_path / (stem.name + ".json")).read_text())["mean"][0])
    assert found == [2.0] * (number // 2) + [1.0] * (3 - number // 2)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number", range(2))
def test_run_record(tmp_path, fail_at, number):
    files.write_json(tmp_path / "run.json", {"old": 1})
    fail_at(number)
    assert str(tmp_path / "run.json") in refusal(files.write_json, tmp_path / "run.json", {"new": 2})
    assert files.read_json(tmp_path / "run.json") == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_has_become_read_only(tmp_path, monkeypatch):
    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "mkstemp", read_only)
    monkeypatch.setattr(checkpoints.tempfile, "mkdtemp", read_only)
    with pytest.raises(UserError, match=r"run.json could not be written \(Read-only file system\)"):
        files.write_json(tmp_path / "run.json", {})
    with pytest.raises(UserError, match=r"model1: the checkpoint could not be written .*Read-only"):
        checkpoints.save(tmp_path, MODEL, state_of(1), Progress(1, np.zeros([0, 2]), 0.0))
    with pytest.raises(UserError, match=r"cannot be written .*choose another --logdir"):
        files.make_folder(tmp_path / "runs")


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (37_000, 37_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_training_whose_summaries_meet_the_limit_of_file_sizes(tmp_path):
    """A checkpoint of this network has 36,076 bytes, a summary some 600."""
    flags = (
        "--norm=None",
        "--metatrain_iterations=1000",
        "--val_tasks=0",
        "--summary_interval=5",
        "--save_interval=50",
    )
    command = [sys.executable, "-c", LIMITED, str(ROOT / "main.py"), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert re.fullmatch(r"main.py: logs\S+events\.out\S+; File too large: TensorBoard's file .*; free.*\n", done.stderr)
    [folder] = tmp_path.glob("logs/sinusoid/cls*")
    saved = checkpoints.list_checkpoints(folder)
    assert saved
    for checkpoint in saved:
        checkpoints.restore(checkpoint, MODEL)


def test_a_training_whose_checkpoint_meets_the_limit_of_file_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--norm=None", "--metatrain_iterations=100", "--val_tasks=0", "--save_interval=50", "--log=False")
    flags += ("--test_num_updates=1",)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        assert run_here(*flags) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if line.startswith("main.py: ")]
    assert re.search("model50: the checkpoint could not be written .*File too large", line)
    [folder] = tmp_path.glob("logs/sinusoid/cls*")
    assert [path.name for path in folder.iterdir()] == ["run.json"]
