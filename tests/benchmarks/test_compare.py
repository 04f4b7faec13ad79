"""The comparison of the algorithms: its table, its figure, and how a training's time ends."""

import signal
import subprocess

import numpy as np
import pytest
from PIL import Image

from benchmarks import compare
from maml.algorithms.protocol import Column
from maml.config import Config
from maml.errors import UserError
from maml.training.summaries import SummaryWriter

ROW = {"accuracy": 0.9876, "ci95": 0.0123, "measured": "query set", "iterations": 1234, "seconds": 60.4}
ROW |= {"parameters": 111936, "tasks": 600, "curve": [(10.0, 0.5), (20.0, 0.9)], "flags": {}}
MACHINE = dict.fromkeys(("processor", "cores", "memory_gib", "system", "python", "tensorflow", "date"), "x")
MACHINE |= {"gpu": [], "load_at_start": 1.0}


class Process:
    """Stands in for a training that goes on until it is interrupted, or for one that fails."""

    def __init__(self, endless: bool):
        self.endless, self.signals = endless, []

    def __call__(self, command):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self, seconds=None):
        if self.endless and not self.signals:
            raise subprocess.TimeoutExpired("main.py", seconds)
        return compare.INTERRUPTED if self.signals else 1


def test_a_training_is_interrupted_when_its_time_is_up(monkeypatch):
    process = Process(endless=True)
    monkeypatch.setattr(subprocess, "Popen", process)
    compare.train_for(1, {"seed": 3})
    assert process.signals == [signal.SIGINT]


def test_a_training_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Process(endless=False))
    with pytest.raises(UserError, match=r"main\.py --seed=3"):
        compare.train_for(1, {"seed": 3})


def test_the_table_says_what_was_measured():
    lines = compare.report({"MAML": ROW}, MACHINE, 60, 5, ["maml"]).splitlines()
    assert "| MAML | 98.76 ± 1.23 | query set | 1,234 | 60 | 111,936 | 98.7 ± 0.4 |" in lines
    assert any("600 test tasks" in line and "compare maml --num_classes=5 --seconds=60`" in line for line in lines)


def test_the_figure_is_a_small_png(tmp_path):
    pytest.importorskip("matplotlib")
    compare.draw(dict.fromkeys(compare.RUNS, ROW), tmp_path / "compare.png", 5)
    assert (tmp_path / "compare.png").stat().st_size < 150_000
    assert min(Image.open(tmp_path / "compare.png").size) >= 400
    wide = Image.open(tmp_path / "compare.png").width
    compare.draw({"MAML": ROW, "matching networks, l2": ROW}, tmp_path / "one.png", 20)  # one panel
    assert 400 <= Image.open(tmp_path / "one.png").width < wide


def test_the_curve_is_read_from_the_validations(tmp_path):
    writer = SummaryWriter(tmp_path, True)
    for iteration, accuracy in ((25, 0.5), (50, 0.75)):
        writer.measures("val", {"accuracy": np.full([4, 1], accuracy)}, [Column("", "", "Query set")], 0, iteration)
    writer.close()
    times, values = zip(*compare.curve(tmp_path, 0.0), strict=True)
    assert values == (0.5, 0.75)
    assert 0 < times[0] <= times[1]


def test_every_run_is_one_that_main_accepts():
    for name, flags in compare.RUNS.items():
        Config.from_flags(compare.EVERYONE | flags)
        Config.from_flags(compare.EVERYONE | flags | compare.RUNS_OF_20.get(name, {}) | {"num_classes": 20})
