"""`main.py` as users call it."""

import csv
import json
import os
import pickle
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml import comparison
from maml.config import Config
from maml.training import checkpoints, runs
from tests.command_line import run_here, run_process
from tests.image_fixtures import write_class_folders

SINE = ("--norm=None", "--update_batch_size=10", "--metatrain_iterations=300", "--val_tasks=0", "--save_interval=150")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    """Train, then test with nothing else; then train again, which finds nothing to do."""
    trained = run_process("--datasource=sinusoid", *SINE, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""  # no noise from TensorFlow, no progress bar without a terminal
    folder = Path("logs/sinusoid/cls_5.mbs_25.ubs_10.numstep1.updatelr0.001nonorm")
    assert str(folder) in trained.stdout
    assert "tensorboard --logdir" in trained.stdout

    tested = run_process("--train=False", "--test_set=True", "--test_tasks=30", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert tested.stderr == ""
    rows = [line for line in tested.stdout.splitlines() if re.match(r"before|\d+ update", line)]
    assert len(rows) == 11
    assert "support set" in rows[0]
    assert "query set" in rows[1]

    stem = tmp_path / folder / "test_ubs10_stepsize0.001_tasks30"
    with open(f"{stem}.csv", newline="") as file:
        header, means, stds, ci95 = csv.reader(file)
    assert header == [f"update{step}" for step in range(11)]
    with open(f"{stem}.pkl", "rb") as file:
        losses = pickle.load(file)["mses"]
    assert losses.shape == (30, 11)
    np.testing.assert_allclose(np.array(means, float), losses.mean(0), rtol=1e-6)
    np.testing.assert_allclose(np.array(stds, float), losses.std(0), rtol=1e-6)
    np.testing.assert_allclose(np.array(ci95, float), 1.96 * losses.std(0) / np.sqrt(30), rtol=1e-6)
    record = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert (record["checkpoint"], record["split"], record["tasks"], record["seed"]) == ("model300", "test", 30, 0)
    assert record["mean"] == pytest.approx([float(mean) for mean in means])

    monkeypatch.chdir(tmp_path)
    assert run_here("--datasource=sinusoid", *SINE) == 0
    assert "already finished" in capsys.readouterr().out


def test_help_lists_the_flags_without_tensorflow(tmp_path):
    told = run_process("--help", cwd=tmp_path)
    assert "--update_batch_size" in told.stdout and "--stop_grad" not in told.stdout
    assert len([line for line in told.stdout.splitlines() if line.startswith("  --")]) == 12
    listed = run_process("--helpfull", cwd=tmp_path)
    assert "--stop_grad=False" in listed.stdout
    assert "tensorflow" not in told.stderr


def test_devices_that_are_missing_are_one_line(tmp_path):
    told = run_process("--norm=None", "--devices=99", cwd=tmp_path)
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1 and "99: this machine has" in told.stderr


def test_version_says_what_computes_here(tmp_path):
    told = run_process("--version", cwd=tmp_path)
    assert told.returncode == 0 and told.stderr == ""
    project, packages, processor, gpu = told.stdout.splitlines()
    assert project == f"maml {maml.__version__}" and f"TensorFlow {tf.__version__}" in packages
    assert f"Python {platform.python_version()}" in packages and processor.endswith("cores") and gpu.startswith("GPU: ")


def test_miniimagenet_end_to_end_learns(here, capsys):
    """84×84 images and max pooling; the paper's values where nothing is given, but for the steps of a test."""
    write_class_folders(here / "data/miniImagenet", {"train": 8, "val": 5, "test": 5}, 12)
    flags = ("--datasource=miniimagenet", "--update_batch_size=1", "--num_filters=4", "--update_lr=0.05")
    flags += ("--val_tasks=4", "--val_interval=10", "--meta_batch_size=2", "--query_size=2")
    assert run_here(*flags, "--metatrain_iterations=20") == 0
    assert " max_pool=True" in capsys.readouterr().out
    assert run_here("--train=False", "--test_set=True", "--test_tasks=20", "--test_num_updates=3") == 0
    [run] = here.glob("logs/miniimagenet/cls_5.mbs_2.ubs_1.numstep1.updatelr0.05hidden4maxpoolbatchnorm*/")
    with open(run / "test_ubs1_stepsize0.05_numupdates3_tasks20.csv", newline="") as file:
        means = [float(mean) for mean in list(csv.reader(file))[1]]
    assert means[3] > 0.5  # chance is 0.2


def test_strided_miniimagenet_and_evaluation_with_other_flags(here, capsys, eagerly):
    write_class_folders(here / "data/miniImagenet", {"train": 5, "val": 5, "test": 5}, 18)
    flags = ("--datasource=miniimagenet", "--update_batch_size=1", "--num_filters=2", "--max_pool=False")
    assert run_here(*flags, "--metatrain_iterations=2", "--meta_batch_size=1", "--val_tasks=0") == 0
    given = ("--train=False", "--test_tasks=4", "--update_batch_size=2", "--update_lr=0.03", "--test_num_updates=3")
    assert run_here(*given) == 0
    found = list(here.glob("logs/miniimagenet/*/test_ubs2_stepsize0.03_val_numupdates3_tasks4.json"))
    assert json.loads(found[0].read_text())["split"] == "val"
    assert len(json.loads(found[0].read_text())["mean"]) == 4


def test_ones_own_images(here, eagerly):
    write_class_folders(here / "photos", {"train": 4, "val": 3, "test": 3}, 6, size=30, channels=1)
    flags = ("--datasource=folder", "--data_dir=photos", "--num_classes=3", "--update_batch_size=2", "--num_filters=4")
    flags += ("--image_size=20", "--channels=1", "--meta_batch_size=2", "--val_tasks=4", "--val_interval=2")
    flags += ("--test_num_updates=1", "--num_updates=1")
    assert run_here(*flags, "--metatrain_iterations=4") == 0
    assert run_here("--train=False", "--test_set=True", "--test_tasks=4", "--test_num_updates=1") == 0
    assert len(list(here.glob("logs/folder/cls_3*/test_ubs2_stepsize0.01_numupdates1_tasks4.csv"))) == 1


def test_omniglot_without_data_offers_the_download(here, capsys):
    assert run_here("--datasource=omniglot") == 1
    error = capsys.readouterr().err
    assert "python -m maml.tasks.omniglot" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--datasource=miniimagenet",),
        ("--num_classes=0",),
        ("--update_lr=nan",),
        ("--meta_batch_size=-1",),
        ("--baseline=oracle", "--datasource=omniglot"),
        ("stray",),
        ("--train=False",),
        ("--train=False", "--logdir=nowhere", "--test_set=True"),
        ("--logdir=/proc/nothing",),
        ("--logdir=a_file",),
        ("--histograms", "--log=False"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(here, capsys, flags):
    (here / "a_file").touch()
    assert run_here(*flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: ")
    assert error.count("\n") == 1
    assert {path.name for path in here.iterdir()} <= {"a_file"}


def test_a_folder_with_another_run_is_refused(here, capsys, monkeypatch):
    """Another data source, network or pre-training under the same folder name; --resume=False moves it aside."""
    monkeypatch.setattr(Config, "exp_string", "same")
    one = ("--logdir=runs", "--metatrain_iterations=10", "--val_tasks=0", "--test_num_updates=1")
    assert run_here(*one, "--norm=None") == 0
    capsys.readouterr()
    others = [("--norm=layer_norm",), ("--norm=None", "--baseline=oracle"), ("--norm=None", "--pretrain_iterations=5")]
    for other in others:
        assert run_here(*one, *other) == 1
        error = capsys.readouterr().err
        assert "runs/same holds a run with" in error
        assert error.count("\n") == 1
    assert run_here(*one, "--norm=layer_norm", "--resume=False") == 0
    assert runs.load_config(here / "runs/same").norm == "layer_norm"
    [aside] = here.glob("runs/same.replaced-*")
    assert checkpoints.list_checkpoints(aside)[-1].iteration == 10


def test_a_test_finds_the_run_that_its_flags_name(here):
    """The last trained one, among those that agree with the flags; shots and rates name a run if one has them."""
    for norm, shots in (("None", 2), ("None", 3), ("layer_norm", 2)):
        config = Config.from_flags({"norm": norm, "update_batch_size": shots})
        runs.record_run(runs.open_run(config)[0], config)
    assert runs.find_run({})[1].norm == "layer_norm"
    assert runs.find_run({"norm": "None"})[1].update_batch_size == 3
    assert runs.find_run({"norm": "None", "update_batch_size": 2})[0].name.startswith("cls_5.mbs_25.ubs_2.")
    folder, config = runs.find_run({"norm": "None", "update_batch_size": 7, "train_update_batch_size": 2})
    assert ".ubs_2." in folder.name
    assert config.update_batch_size == 7
    folder, config = runs.find_run({"norm": "None", "update_batch_size": 7})
    assert ".ubs_3." in folder.name
    assert config.update_batch_size == 7
    assert config.train is False


def test_ctrl_c_outside_the_training_loop_is_one_line(here, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("maml.training.memory.check_memory", interrupted)
    assert run_here(*SINE) == 130
    assert capsys.readouterr().err == "main.py: interrupted; run the same command to resume or start over\n"
    monkeypatch.setattr("maml.comparison.compare", interrupted)
    monkeypatch.setattr("sys.argv", ["compare", "a"])
    assert comparison.main() == 130
    assert capsys.readouterr().err == "compare: interrupted\n"


def test_a_read_only_log_folder_is_one_line(here, capsys):
    if os.geteuid() == 0:
        pytest.skip("the superuser can write everywhere")
    (here / "locked").mkdir(mode=0o500)
    assert run_here("--logdir=locked/runs", *SINE) == 1
    assert capsys.readouterr().err.count("\n") == 1
