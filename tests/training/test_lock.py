"""One process trains in a run folder at a time; a dead one holds nobody up."""

import platform
import signal
import subprocess
import sys

import pytest

from maml.config import Config
from maml.errors import UserError
from maml.files import locked
from maml.training import runs
from tests.command_line import ROOT, run_here

HOLD = """
import sys, time
from pathlib import Path
from maml.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Starts a process that holds a lock; it is gone after the test."""
    processes = []

    def start(path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_second_process_is_refused_with_the_first_ones_host_and_id(tmp_path, hold, capsys, monkeypatch):
    """--resume=False, which would move the folder aside, is refused as well."""
    monkeypatch.chdir(tmp_path)
    folder = runs.run_folder(Config())
    folder.mkdir(parents=True)
    (folder / "precious").touch()
    process = hold(tmp_path / folder.with_name(f".{folder.name}.lock"))
    for flags in ((), ("--resume=False",)):
        assert run_here("--metatrain_iterations=1", *flags) == 1
        error = capsys.readouterr().err
        assert f"process {process.pid} on {platform.node()} trains in this folder" in error
        assert error.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == ["precious"]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, hold):
    path = tmp_path / "lock"
    process = hold(path)
    with pytest.raises(UserError, match=f"process {process.pid} "), locked(path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert str(process.pid) in path.read_text(), "the dead process left its name"
    with locked(path):
        assert str(process.pid) not in path.read_text()


def test_the_lock_ends_with_its_block_and_other_folders_are_free(tmp_path):
    with locked(tmp_path / "one"), locked(tmp_path / "other"):
        pass
    with locked(tmp_path / "one"):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="lock: cannot be locked"), locked(tmp_path / "missing" / "lock"):
        pass
