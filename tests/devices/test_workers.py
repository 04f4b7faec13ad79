"""Several processes: they end like one, stop together, and say in one line what went wrong."""

import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from maml.launch import environment_of, free_ports
from tests import kill
from tests.command_line import ROOT, run_here, run_process
from tests.kill import tensors

TEST = ("--train=False", "--logdir=runs", "--test_tasks=50")


def launch(folder, *flags, workers=2, **options):
    command = [sys.executable, "-m", "maml.launch", f"--workers={workers}", str(ROOT / "main.py"), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def of_the_guide(language, *flags):
    """The shell commands of a block of docs/many_devices.md, with these flags for its own."""
    page = (ROOT / "docs/many_devices.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    if language == "yaml":  # a folded scalar, whose lines are one
        block = re.search(r"- >\n(.*?)\n *resources:", block, re.DOTALL)[1].replace("\n", " ")
    changed, count = re.subn(r"main\.py --[^\n]*", f"{ROOT}/main.py {shlex.join(flags)}", block)
    assert count == 1
    return changed


def shell(folder, text, **environment):
    """A shell in a folder; its `python` is the one that runs the tests."""
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    for name in ("python", ".venv/bin/python"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        ["bash", "-ec", text], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_kernel():
    """What a kernel adds in which order may depend on its threads, and these on how many processes share the cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_NUM_INTRAOP_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training by two workers, the pods of the guide's Kubernetes job; its images beside it."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    folder.mkdir()
    kill.write_data("folder", folder.parent / "data")
    text = of_the_guide("yaml", *kill.WORKERS_FLAGS, "--metatrain_iterations=200")
    for host, port in zip(("maml-0.maml", "maml-1.maml"), free_ports(2), strict=True):
        text = text.replace(f"{host}:2222", f"127.0.0.1:{port}")
    process, other = (shell(folder, text, JOB_COMPLETION_INDEX=str(index)) for index in range(2))
    out, err = process.communicate(timeout=200)
    assert other.communicate(timeout=50) == ("", "") and other.returncode == 0
    assert process.returncode == 0, err
    assert out.count("Trained: 200 iterations") == out.count("Setting") == 1  # the chief alone prints
    assert not err
    return folder


SRUN = """#!/bin/sh
# What srun sets for the two tasks of a step on one node.
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!
"""


def test_two_workers_end_like_one_and_test_to_the_same_bytes(trained, monkeypatch):
    alone = trained.parent / "one"
    alone.mkdir()
    done = run_process(*kill.WORKERS_FLAGS, "--metatrain_iterations=20", cwd=alone)
    assert done.returncode == 0, done.stderr
    one, two = tensors(alone, "model", 20), tensors(trained, "model", 20)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)
    monkeypatch.chdir(trained)
    assert run_here(*TEST) == 0
    (file,) = trained.glob("runs/*/test*.pkl")
    expected = file.read_bytes()
    file.unlink()
    (trained / "srun").write_text(SRUN)
    (trained / "srun").chmod(0o755)
    process = shell(trained, of_the_guide("bash", *TEST), SLURM_JOB_ID=str(os.getpid()))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and out.count("Written to") == 1, err
    assert file.read_bytes() == expected


def test_workers_that_do_not_divide_the_batch_end_with_one_line(tmp_path):
    process = launch(tmp_path, "--norm=None", "--metatrain_iterations=1")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "choose 24 or 26" in err and "Traceback" not in err
    assert not list(tmp_path.glob("logs/*/*"))


STARTED = """
import os, sys
from maml import program
from maml.devices import cluster
cluster.STARTS_WITHIN = 3.0
if os.environ["TF_CONFIG"].endswith('"index": 1}}'):
    program.set_up_tensorflow = lambda *arguments: os._exit(0)  # goes away behind the meeting
program.define_flags()
sys.exit(program.main(program.parse(["main.py", "--norm=None", "--meta_batch_size=2"])))
"""


def test_a_worker_that_goes_away_behind_the_meeting_is_not_waited_for(tmp_path):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    chief, gone = (
        subprocess.Popen(
            [sys.executable, "-c", STARTED], env=environment_of(index, addresses) | {"PYTHONPATH": str(ROOT)}, **options
        )
        for index in range(2)
    )
    _, err = chief.communicate(timeout=100)
    assert gone.wait() == 0 and chief.returncode == 1
    assert err.startswith("another worker is gone") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


OWN = """
import keras, numpy as np, sys, maml
from maml.devices import replicas
with maml.strategy().scope():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    def task(rng):
        x, y = (rng.normal(size=(6, width)).astype("float32") for width in (3, 1))
        return x[:3], y[:3], x[3:], y[3:]
    flags = {"val_interval": 10, "test_num_updates": 1, "logdir": sys.argv[1]}
    learner = maml.train(model, task, loss="mse", metatrain_iterations=20, val=task, val_tasks=20, **flags)
    measured = learner.test(task, 40).values
    if replicas.is_chief():
        np.savez(sys.argv[1] + ".npz", measured=measured, **learner.weights)
"""


def test_a_model_of_ones_own_is_trained_and_tested_by_two_workers(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name, before in (("one", []), ("two", ["-m", "maml.launch", "--workers=2"])):
        command = [sys.executable, *before, "own.py", name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Trained: 20 iterations") == 1 and done.stdout.count("Validation results") == 2
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert set(one) == set(two) and len(one) == 5
    for name, values in one.items():
        np.testing.assert_array_equal(two[name], values)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs the signals of POSIX")
def test_a_killed_worker_is_noticed_and_all_go_on_to_the_bit(trained):
    """One SIGKILL; `python -m tests.kill --workers=2` does many, SIGTERM by turns."""
    outcome = kill.kill_workers(2, kills=1, seed=3, folder=trained.parent)
    assert len(outcome.kills) == 1 and outcome.kills[-1] > 0
