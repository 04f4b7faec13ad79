"""The programs in examples/ run, and learn."""

import os
import re
import subprocess
import sys

import keras
import pytest

from tests.command_line import ROOT
from tests.image_fixtures import write_class_folders


@pytest.mark.parametrize("name", ["machines.py", "metasgd.py"])
def test_examples_learn(name, tmp_path):
    source = (ROOT / "examples" / name).read_text()
    shorter = source.replace("metatrain_iterations=2000", "metatrain_iterations=400")
    (tmp_path / name).write_text(shorter)
    done = subprocess.run(
        [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    means = [float(row.split("±")[0].split()[-1]) for row in done.stdout.splitlines() if "set  " in row]
    assert means[-1] < 0.8 * means[0]


def first_blocks(network):
    """Of MobileNetV2 the part with a layer of every kind: the whole takes half a minute to trace."""

    def shorter(*arguments, **options):
        whole = network(*arguments, **options)
        return keras.Model(whole.input, whole.get_layer("block_2_add").output)

    return shorter


@pytest.mark.parametrize("name", ["lstm.py", "transformer.py", "pendulum.py", "photos.py", "augmented.py"])
def test_the_other_examples_run(name, tmp_path, monkeypatch, capsys):
    """Two iterations of each; docs/your_own_model.md says what they reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.applications, "MobileNetV2", first_blocks(keras.applications.MobileNetV2))
    write_class_folders(tmp_path / "photos", {"train": 5, "val": 5, "test": 5}, 4, size=32)
    monkeypatch.setattr("sys.argv", [name, "photos", "2"])
    source = (ROOT / "examples" / name).read_text()
    shorter = re.sub(r"(metatrain_iterations=)\d+", r"\g<1>2", source)
    shorter = shorter.replace("20", "5").replace("(21)", "(6)") if name == "lstm.py" else shorter  # values of a wave
    shorter = re.sub(r"(learner\.test\(\w+, )\d+", r"\g<1>20", shorter)
    exec(compile(shorter, name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "Trained: 2 iterations" in printed and "(20 tasks)" in printed
