"""The history of a run: every checkpoint is validated once, and drawn over hours."""

import pytest
from PIL import Image

from benchmarks import history
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

pytest.importorskip("matplotlib")


def test_every_checkpoint_is_validated_once_as_a_test_does(tmp_path, monkeypatch, capsys, eagerly):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"train": 3, "val": 3}, 6, size=16, channels=1)
    flags = ("--datasource=folder", "--data_dir=photos", "--num_classes=3", "--update_batch_size=1", "--query_size=2")
    flags += ("--meta_batch_size=1", "--num_filters=2", "--num_updates=2", "--val_tasks=0", "--save_interval=4")
    assert run_here(*flags, "--metatrain_iterations=8", "--logdir=run") == 0
    command = ["run", "--tasks=5", "--output=drawn/history", "--level=run", "--update_ms", "100", "300"]
    capsys.readouterr()
    assert history.main(command) == 0
    assert capsys.readouterr().out.count("iteration ") == 4, "two of each"
    points = history.read_table(tmp_path / "drawn/history.csv")
    assert list(points) == [4, 8]
    assert run_here("--train=False", "--logdir=run", "--test_tasks=5", "--test_iter=4") == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2 updates")]
    assert float(printed[0].split()[4]) == pytest.approx(points[4].accuracy, abs=0.01)
    assert min(Image.open(tmp_path / "drawn/history.png").size) >= 400
    assert history.main(command) == 0
    assert "iteration " not in capsys.readouterr().out
    assert history.main([*command, "--tasks=6"]) == 1
    assert capsys.readouterr().err == "history: drawn/history.csv: is of 5 tasks, not 6; name another --output\n"


def test_what_has_no_accuracy_is_one_line(tmp_path, monkeypatch, capsys, interpreted):
    monkeypatch.chdir(tmp_path)
    assert run_here("--norm=None", "--metatrain_iterations=2", "--val_tasks=0", "--logdir=run") == 0
    capsys.readouterr()
    [folder] = [path.relative_to(tmp_path) for path in (tmp_path / "run").iterdir() if path.is_dir()]
    assert history.main(["run", "--output=a"]) == 1
    assert capsys.readouterr().err == f"history: {folder}: a run on sinusoid has no accuracy\n"
    assert history.main(["nothing", "--output=a"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
