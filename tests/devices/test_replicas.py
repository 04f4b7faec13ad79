"""However many replicas share the tasks: the same episodes, the same update."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from maml.devices import replicas
from maml.devices.replicas import check_divides
from maml.devices.start import strategy
from maml.errors import UserError
from tests.command_line import ROOT, run_here
from tests.devices.divided import CASES


@pytest.fixture(scope="module")
def differences():
    command = [sys.executable, "-m", "tests.devices.divided"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_replicas_change_nothing(name, differences):
    """Weights, Adam's state, the loss and the summaries after some updates, 200 of the sinusoid; an evaluation, too."""
    found = [difference for label, difference in differences[name].items() if label.endswith("replicas")]
    assert found and not any(found)


def test_a_batch_that_does_not_divide_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(replicas, "count", lambda: 2)
    check_divides(6)
    with pytest.raises(UserError, match=r"--meta_batch_size=25 does not divide over 2 replicas: choose 24 or 26"):
        check_divides(25)
    with pytest.raises(UserError, match=r"over 2 replicas \(times --accumulate=3\): choose 24 or 30"):
        check_divides(25, 3)
    with pytest.raises(UserError, match=r"--meta_batch_size=1 does not divide over 2 .* choose 2, or another"):
        check_divides(1)


@pytest.mark.parametrize(
    ("devices", "message"),
    [("two", "must be a number of GPUs"), ("cpu:0", "must be a number"), ("0", "must be"), ("9", "this machine has")],
)
def test_devices_that_are_not_there_are_one_line(devices, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here("--norm=None", "--metatrain_iterations=1", f"--devices={devices}") == 1
    found = capsys.readouterr().err
    assert message in found and found.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_devices_are_chosen_before_tensorflow_computes():
    tf.config.list_logical_devices()
    with pytest.raises(UserError, match="has computed already"):
        strategy("cpu:2")
