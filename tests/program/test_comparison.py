"""Runs beside one another: the same tasks, paired differences, seeds in one row."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import maml
from maml import comparison
from maml.errors import UserError
from maml.training.summaries import Point
from tests.command_line import ROOT, run_here

FLAGS = ("--norm=None", "--meta_batch_size=2", "--metatrain_iterations=20", "--val_tasks=0", "--test_num_updates=1")
FLAGS += ("--summary_interval=5",)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        from maml.models.official import Network

        patch.setattr(Network, "compiled", False)
        for name, flags in {"a": (), "b": ("--seed=1",), "c": ("--update_lr=0.01",)}.items():
            assert run_here(*FLAGS, *flags, f"--logdir={root / name}") == 0
        assert run_here(*FLAGS, "--update_batch_size=3", f"--logdir={root / 'other'}") == 0
    return root


@pytest.fixture(autouse=True)
def without_xla(interpreted):
    pass


def test_seeds_are_one_row_and_differences_are_paired(logs):
    found = maml.compare([logs / "a", logs / "b", logs / "c"], tasks=40, test_num_updates=1)
    assert [len(row.runs) for row in found.rows] == [2, 1]
    two, other = found.rows
    assert two.name == "maml update_lr=0.001" and other.name == "maml update_lr=0.01"
    means = [run.values.mean() for run in two.runs]
    assert two.mean == pytest.approx(np.mean(means))
    assert two.ci_runs == pytest.approx(12.71 * np.std(means, ddof=1) / math.sqrt(2)) and math.isnan(other.ci_runs)
    paired = other.runs[0].values - np.mean([run.values for run in two.runs], 0)
    assert other.difference == pytest.approx(paired.mean())
    assert other.ci_difference == pytest.approx(1.96 * paired.std() / math.sqrt(40))
    assert other.ci_difference < other.ci_tasks, "of the same tasks"
    alone = maml.compare([logs / "c"], tasks=40, test_num_updates=1).rows[0].runs[0]
    np.testing.assert_array_equal(alone.values, other.runs[0].values)
    assert (alone.iteration, alone.parameters) == (20, 1761) and alone.seconds > 0
    text = str(found)
    assert "(2 seeds)" in text and "±" in text and len({len(line) for line in text.splitlines()[:3]}) == 1


def test_what_is_not_the_same_task_is_refused(logs, capsys, monkeypatch):
    with pytest.raises(UserError, match=r"has shots 3, and the first run 5: only runs on the same tasks"):
        maml.compare([logs / "a", logs / "other"], tasks=2)
    with pytest.raises(UserError, match="no folders of runs"):
        maml.compare([])
    assert len(maml.compare(str(logs / "a"), tasks=2).rows) == 1
    monkeypatch.setattr("sys.argv", ["compare", str(logs / "nothing")])
    assert comparison.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_is_the_only_line(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "maml.compare", "nowhere"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1 and told.stderr == "compare: nowhere: there is no run in it (looked for run.json)\n"


def test_the_command_prints_the_table_and_draws_curves(logs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "read_curve", lambda folder, tag: [Point(5, 0.0, 3.0), Point(10, 1.0, 2.0)])
    picture = tmp_path / "curves.png"
    monkeypatch.setattr("sys.argv", ["compare", str(logs / "a"), str(logs / "b"), "--tasks=4", f"--figure={picture}"])
    assert comparison.main() == 0
    assert "mean squared error" in capsys.readouterr().out and picture.read_bytes()[:4] == b"\x89PNG"


def test_pauses_are_no_training_time():
    points = [Point(step, step + 4900.0 * (step > 99), 0.0) for step in range(102)]
    assert comparison._seconds(points) == 100
    assert math.isnan(comparison._seconds([]))
