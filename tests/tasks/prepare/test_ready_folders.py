"""Class folders that are ready, and folders of something else."""

import subprocess
import sys

from tests.command_line import ROOT
from tests.tasks.prepare.fixtures import check_result, ready, refused, run, state, write_lists


def test_ready_folders_are_only_checked(tmp_path):
    ready(tmp_path / "data" / "miniImagenet")
    before = state(tmp_path)
    assert run() == 0
    assert state(tmp_path) == before


def test_ready_folders_with_lists_beside_them(tmp_path, capsys):
    """The official script leaves its lists there; that is not ILSVRC2012."""
    ready(tmp_path / "data" / "miniImagenet")
    write_lists(tmp_path / "data" / "miniImagenet")
    assert run() == 0
    assert "class folders" in capsys.readouterr().out


def test_ready_folders_elsewhere_are_copied(tmp_path):
    ready(tmp_path / "elsewhere", size=100)
    assert run("--source", tmp_path / "elsewhere") == 0
    check_result()


def test_ready_folders_lacking_something(tmp_path, capsys):
    ready(tmp_path / "data" / "miniImagenet")
    victim = tmp_path / "data" / "miniImagenet" / "test" / "n01930112"
    next(victim.iterdir()).unlink()
    assert "n01930112 (3)" in refused(capsys)
    for file in victim.iterdir():
        file.unlink()
    victim.rmdir()
    assert "test lacks 1 of 2 classes: n01930112" in refused(capsys)


def test_unreadable_images_of_ready_folders_are_named(tmp_path, capsys):
    ready(tmp_path / "data" / "miniImagenet")
    file = next((tmp_path / "data" / "miniImagenet" / "test" / "n01930112").iterdir())
    file.write_bytes(file.read_bytes()[:500])
    assert run() == 1
    lines = capsys.readouterr().err.splitlines()
    assert file.name in lines[0] and "1 of 20 images are unreadable" in lines[1]


def test_nothing_recognized(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.zip").write_bytes(b"")
    (tmp_path / "photos" / "a.mp4").write_bytes(b"")
    message = refused(capsys, "--source", tmp_path / "photos")
    assert "holds a.mp4, a.zip" in message and "mini-imagenet-cache" in message and "images/" in message
    assert "no such folder" in refused(capsys, "--source", tmp_path / "none")
    assert "is a file" in refused(capsys, "--source", tmp_path / "photos" / "a.mp4")
    assert "not a readable zip" in refused(capsys, "--source", tmp_path / "photos" / "a.zip")


def test_the_program_starts_fast_and_without_tensorflow():
    code = "import sys, proc_images, maml.tasks.omniglot; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
