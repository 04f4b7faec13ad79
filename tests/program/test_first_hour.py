"""What a person meets in the first hour: paths, printed commands, other systems, results that stay."""

import json
import os
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest

import proc_images
from maml import commands, files, machine
from maml.config import Config
from maml.errors import UserError
from maml.tasks.split import ImageSplit, Source, check_fits
from maml.training.memory import check_memory
from tests.command_line import ROOT, run_here

TINY = ("--metatrain_iterations=4", "--meta_batch_size=2", "--norm=None", "--val_tasks=0", "--save_interval=2")
TINY += ("--test_num_updates=1",)


def results(folder) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("logs/*/test_*.json")}


def test_no_result_of_a_test_takes_anothers_place(tmp_path, monkeypatch, eagerly):
    from maml.training.evaluation import Evaluator

    def tasks(self, weights, split, tasks, num_updates, progress):
        return {"loss": np.ones([tasks, num_updates + 1])}

    monkeypatch.setattr(Evaluator, "tasks", tasks)  # not what is measured, but where it goes
    monkeypatch.chdir(tmp_path)
    assert run_here(*TINY, "--logdir=logs") == 0
    changes = ("--test_set", "--test_iter=2", "--query_size=3", "--test_num_updates=1", "--seed=5", "--bn_mode=x")
    tests = [(), ("--test_set",), *(("--test_set", change) for change in changes[1:-1])]
    for number, flags in enumerate(tests, 1):
        assert run_here("--train=False", "--logdir=logs", *flags) == 0
        assert len(results(tmp_path)) == number, flags
    found = results(tmp_path)
    official = found["test_ubs5_stepsize0.001"]
    assert (official["split"], official["checkpoint"], official["tasks"]) == ("test", "model4", 600)
    assert set(found) == {
        f"test_ubs5_stepsize0.001{end}" for end in ("", "_val", "_model2", "_querysize3", "_seed5")
    } | {"test_ubs5_stepsize0.001_numupdates1"}
    # Trained further, the official name is the newer checkpoint's, and the older one's results stay beside it.
    assert run_here(*TINY, "--logdir=logs", "--metatrain_iterations=6") == 0
    assert run_here("--train=False", "--logdir=logs", "--test_set") == 0
    found = results(tmp_path)
    assert found["test_ubs5_stepsize0.001"]["checkpoint"] == "model6"
    assert found["test_ubs5_stepsize0.001_model4"] == official


def test_the_printed_commands_run_as_printed(tmp_path, monkeypatch, capsys, eagerly):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_here(*TINY, "--logdir=my logs") == 0
    printed = capsys.readouterr().out
    lines = {line.partition(":")[0]: line.partition(":")[2].strip() for line in printed.splitlines()}
    tested = subprocess.run(
        lines["Test it"] + " --test_tasks=2 --test_num_updates=1",
        cwd=folder,
        shell=True,
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0 and "mean squared error" in tested.stdout, tested.stderr
    assert shlex.split(lines["TensorBoard"]) == ["tensorboard", "--logdir=my logs"]


@pytest.mark.parametrize("start", [ROOT, "/"])
def test_commands_of_modules_run_from_anywhere(start, monkeypatch):
    monkeypatch.chdir(start)
    command = commands.module("maml.tasks.omniglot", "--help")
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "--mirror" in done.stdout
    done = subprocess.run(commands.program("proc_images.py", "--help"), shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "--make_splits" in done.stdout


def test_the_home_folder_in_every_path(tmp_path, monkeypatch, eagerly):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_here(*TINY, "--logdir=~/logs") == 0
    assert run_here("--train=False", "--logdir=~/logs", "--test_tasks=2", "--export_dir=~/exported") == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["exported", "logs"]
    import maml

    learner = maml.load("~/logs")
    learner.export("~/again")
    assert (tmp_path / "again").is_dir()
    for flag, said in (("--source", "no such folder"), ("--csv_dir", "csv")):
        assert proc_images.main([f"{flag}=~/nothing"]) == 1, said
    assert not (tmp_path / "~").exists()


def test_images_that_moved_are_asked_for(tmp_path, monkeypatch, capsys, eagerly):
    from tests.image_fixtures import write_class_folders

    write_class_folders(tmp_path / "here/photos", {"train": 3, "val": 3, "test": 3}, 3, size=16)
    monkeypatch.chdir(tmp_path / "here")
    flags = ("--datasource=folder", "--data_dir=photos", "--num_classes=3", "--update_batch_size=1", "--num_filters=2")
    flags += ("--num_updates=1",)
    assert run_here(*flags, "--query_size=1", *TINY, "--norm=batch_norm", "--logdir=../logs") == 0
    monkeypatch.chdir(tmp_path)
    test = ("--train=False", "--logdir=logs", "--test_tasks=2", "--test_num_updates=1")
    assert run_here(*test) == 0, "from another folder"
    os.rename(tmp_path / "here/photos", tmp_path / "moved")
    capsys.readouterr()
    assert run_here(*test) == 1
    error = capsys.readouterr().err
    assert "run.json has its images: name with --data_dir where they are now" in error and error.count("\n") == 1
    assert run_here(*test, "--data_dir=moved") == 0


def test_without_the_systems_word_on_memory_nothing_is_refused(monkeypatch):
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert machine.physical_memory() is None
    check_memory(Config.from_flags({"meta_batch_size": 10**9}))


def test_data_that_cannot_fit_is_refused_before_it_is_read(monkeypatch):
    def read() -> ImageSplit:
        raise AssertionError("was read")

    with pytest.raises(UserError, match=r"x/train: its images take 1,\d+\.\d GiB.*lower --image_size"):
        check_fits(Source("", read, (2**20, 2**20), name="x/train"))
    check_fits(Source("", read, (2**10, 2**10), name="x/train"))


def test_the_lock_of_windows(tmp_path, monkeypatch):
    """By simulation: msvcrt locks a byte behind the text, which the one who is refused can read."""
    held: set[str] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 1 << 30
        if place in held:
            raise PermissionError(13, "Permission denied")
        held.add(place)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to know a file by its descriptor")
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(sys, "platform", "win32")
    with files.locked(tmp_path / "lock"):
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .* trains in this folder"),
            files.locked(tmp_path / "lock"),
        ):
            pass
        assert (tmp_path / "lock").read_text().endswith(f" {os.getpid()}")
        assert (tmp_path / "lock").stat().st_size < 200


def test_writing_syncs_files_that_are_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to sync what is open for reading."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        os.write(descriptor, b"")  # fails on a descriptor that is open for reading
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


def test_prepared_images_on_another_drive(monkeypatch):
    """os.path.commonpath has no answer for two drives."""
    from maml.tasks.prepare import own

    def commonpath(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    assert not own._inside("d:/out", "c:/photos")
