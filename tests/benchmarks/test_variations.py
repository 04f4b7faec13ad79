"""Variations of a test: each changes what it says, and nothing else."""

import re

import pytest

from benchmarks import variations
from tests.command_line import run_here
from tests.image_fixtures import write_omniglot_archives


def rows_of(printed: str) -> dict[str, list[float]]:
    """Accuracies on both splits, by title."""
    found = re.findall(r"^\| (.+) \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|$", printed, re.MULTILINE)
    return {title: [float(val), float(test)] for title, val, test in found}


def test_each_variation_changes_what_it_says(tmp_path, monkeypatch, capsys, interpreted):
    monkeypatch.chdir(tmp_path)
    write_omniglot_archives("drawings")
    flags = ("--datasource=omniglot", "--data_dir=drawings", "--num_classes=3", "--update_batch_size=1", "--seed=1")
    flags += ("--meta_batch_size=2", "--num_filters=2", "--num_updates=1", "--update_lr=0.4", "--save_interval=4")
    flags += ("--val_tasks=10", "--val_interval=4", "--meta_lr=0.01", "--logdir=run")
    assert run_here(*flags, "--metatrain_iterations=8") == 0
    capsys.readouterr()
    assert variations.main(["run", "--tasks=40", "--more=3", "--meta_lr", "1e-30", "0.05"]) == 0
    found = rows_of(capsys.readouterr().out)
    last = found["last checkpoint, 8"]
    assert run_here("--train=False", "--test_set=True", "--logdir=run", "--test_tasks=40") == 0
    [printed] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 update,")]
    assert float(printed.split()[4]) == pytest.approx(last[1], abs=0.01)
    assert found["3 more iterations with β = 1e-30"] == last, "a learning rate of nothing changes nothing"
    assert found["3 more iterations with β = 0.05"] != last
    changed = [
        "mean of the weights of the last 2 checkpoints, from 4",
        "last checkpoint, classes not turned in the test",
    ]
    assert all(found[title] != last for title in changed)
    assert variations.main(["run", "--tasks=2", "--more=2", "--meta_lr", "1e38"]) == 1
    assert "--meta_lr 1e+38: not finite after iteration 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        variations.main(["run", "--meta_lr", "0.1"])
    assert {"last checkpoint, 2 inner steps"} < found.keys() and any(title.startswith("best in") for title in found)


def test_what_has_no_accuracy_is_one_line(tmp_path, monkeypatch, capsys, interpreted):
    monkeypatch.chdir(tmp_path)
    assert run_here("--norm=None", "--metatrain_iterations=1", "--val_tasks=0", "--logdir=run") == 0
    capsys.readouterr()
    assert variations.main(["run"]) == 1
    assert "needed MAML's family on images" in capsys.readouterr().err
    assert variations.main(["nothing"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
