"""An interrupted preparation resumes, and mixes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from maml.tasks.images import load_split
from maml.tasks.prepare import writing
from tests.command_line import ROOT
from tests.image_fixtures import write_class_folders
from tests.tasks.prepare.fixtures import check_result, refused, run, write_images, write_pickles


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "ravi", size=100)
    original, calls = writing.encoded, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(writing, "encoded", interrupted)
    assert run("--source", tmp_path / "ravi") == 130
    assert "run the same command again" in capsys.readouterr().err
    first = {path: path.stat().st_mtime_ns for path in Path("data").rglob("*.jpg")}
    assert 0 < len(first) < 20
    monkeypatch.setattr(writing, "encoded", original)
    assert run("--source", tmp_path / "ravi") == 0
    check_result()
    assert all(path.stat().st_mtime_ns == time for path, time in first.items()), "files were written again"


def test_a_killed_run_goes_on(tmp_path):
    """Whatever a killed process leaves, each visible image is whole."""
    write_class_folders(tmp_path, {"photos": 6}, per_class=25, size=200)
    arguments = ["--make_splits", "--source", "photos", "--output", "own", "--splits", "2,2,2"]
    process = subprocess.Popen([sys.executable, ROOT / "proc_images.py", *arguments], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not list(Path("own").glob("*/*/*.png")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(Path("own").glob("*/*/*.png"))
    assert 0 < len(left) < 150
    for path in left:
        with Image.open(path) as image:
            image.load()
    assert run(*arguments) == 0
    assert load_split("folder", "own", "val", image_size=84, channels=3).counts.tolist() == [25, 25]


def test_images_of_different_origin_are_not_mixed(tmp_path, capsys):
    write_images(tmp_path / "ravi", size=100)
    write_pickles(tmp_path / "pickles")
    assert run("--source", tmp_path / "ravi") == 0
    assert "prepared otherwise" in refused(capsys, "--source", tmp_path / "pickles")
    assert "prepared otherwise" in refused(capsys, "--source", tmp_path / "ravi", "--jpeg_quality", 90)
    assert run("--source", tmp_path / "pickles", "--output", "other") == 0


def test_a_full_disk(tmp_path):
    write_class_folders(tmp_path, {"photos": 6}, per_class=2, size=100)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    program = "import sys, proc_images; sys.exit(proc_images.main(sys.argv[1:]))"
    arguments = ["--make_splits", "--source", "photos", "--output", "own", "--splits", "2,2,2"]
    done = subprocess.run(
        [sys.executable, "-c", limit + program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "could not be written" in done.stderr
    assert not list(Path("own").rglob("*.tmp"))


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    Path("data").write_bytes(b"a file")
    assert "cannot be written" in refused(capsys, "--source", tmp_path / "ravi")
