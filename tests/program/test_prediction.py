"""`main.py --predict`, and `--bn_mode` on the command line."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import maml
from maml.tasks.images import load_split, read_images
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

TRAIN = ("--datasource=folder", "--data_dir=photos", "--image_size=20", "--channels=3", "--num_classes=3")
TRAIN += ("--update_batch_size=1", "--num_filters=8", "--update_lr=0.1", "--meta_batch_size=2", "--val_tasks=0")
TRAIN += ("--num_updates=2", "--test_num_updates=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run in logs/, its images in photos/, and support/ and query/ of three classes."""
    root = tmp_path_factory.mktemp("prediction")
    write_class_folders(root / "photos", {"train": 6, "val": 3, "test": 3}, 4, size=24)
    query = root / "query"
    query.mkdir()
    for folder in sorted((root / "photos/test").iterdir()):
        paths = sorted(folder.iterdir())
        kept = root / "support" / folder.name
        kept.mkdir(parents=True)
        for path in paths[:2]:
            (kept / path.name).write_bytes(path.read_bytes())
        for path in paths[2:]:
            (query / f"{folder.name}-{path.name}").write_bytes(path.read_bytes())
    (root / "support/test_00/001.png").unlink()  # one image of this class, two of the others
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        # With fewer, some seeds, and so some processors, leave two classes that look alike.
        assert run_here(*TRAIN, "--metatrain_iterations=200", "--nolog") == 0
    return root


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def test_predictions_are_printed_and_written(here, capsys, tmp_path):
    """One line a query, the numbers of the Python interface, and the right classes: they are easy."""
    table = tmp_path / "answers.csv"
    given = ("--predict", "--support=support", "--query=query", f"--predict_csv={table}", "--test_num_updates=4")
    assert run_here(*given, f"--export_dir={tmp_path / 'exported'}") == 0
    printed = capsys.readouterr().out
    learner = maml.load("logs", test_num_updates=4)
    paths = sorted((here / "support").glob("*/*"))
    adapted = learner.adapt(learner.read_images(paths), [path.parent.name for path in paths])
    queries = sorted((here / "query").iterdir())
    probabilities = adapted.predict_proba(learner.read_images(queries))
    with open(table, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "class", "probability", "p(test_00)", "p(test_01)", "p(test_02)"]
    assert [row[0] for row in rows] == [path.name for path in queries]
    np.testing.assert_allclose([list(map(float, row[3:])) for row in rows], probabilities, atol=1e-6)
    assert [row[1] for row in rows] == [path.name.split("-")[0] for path in queries]
    for name, label, probability, *_ in rows:
        assert f"{name}  {label}  {float(probability):.3f}\n" in printed
    assert "All queries share one batch-norm" in printed
    assert (tmp_path / "exported/saved_model.pb").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"answers.csv", "exported"}


def test_labeled_queries_are_measured(here, capsys, tmp_path):
    """A query folder of class folders: accuracy, each class's, the confusion matrix as a table and as a picture."""
    for path in sorted((here / "query").iterdir()):
        name = path.name.split("-")[0]
        wrong = {"test_00": "test_01"}.get(name, name)  # all of one class lie in another one's folder
        (tmp_path / "labeled" / wrong).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "labeled" / wrong / path.name)
    (tmp_path / "labeled" / "notes.txt").write_text("x")
    table = tmp_path / "answers.csv"
    given = ("--predict", "--support=support", f"--query={tmp_path / 'labeled'}", f"--predict_csv={table}")
    assert run_here(*given, "--test_num_updates=4") == 0
    printed = capsys.readouterr().out
    each = len(list((here / "query").glob("test_00*")))
    assert f"accuracy {200 / 3:.1f} % of {3 * each} images" in printed
    assert re.search(rf"test_01 +50.0 % +{each} +{each} +0\n", printed)
    assert re.search(rf"test_02 +100.0 % +0 +0 +{each}\n", printed)
    assert "1 files are no images of a class: notes.txt" in printed
    with open(table, newline="") as file:
        header, *rows = csv.reader(file)
    assert header[3] == "true class" and [row[3] for row in rows] == sorted(row[3] for row in rows)
    with Image.open(tmp_path / "answers.confusion.png") as image:
        assert image.width > 100 and image.height > 100
    (tmp_path / "labeled" / "zebra").mkdir()
    shutil.copy(path, tmp_path / "labeled" / "zebra")
    assert run_here(*given) == 1
    assert "class folders zebra, which --support lacks (it has test_00" in capsys.readouterr().err


def test_a_query_alone_by_the_support_set(here, capsys, tmp_path):
    """With --bn_mode=support a folder of one image gets the line that it gets among others."""
    first = sorted((here / "query").iterdir())[0]
    (tmp_path / first.name).write_bytes(first.read_bytes())
    lines = []
    for folder in (here / "query", tmp_path):
        assert run_here("--predict", "--bn_mode=support", "--support=support", f"--query={folder}") == 0
        lines.append([line for line in capsys.readouterr().out.splitlines() if line.startswith(first.name)])
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]


def test_a_test_says_whose_statistics_it_used(here, capsys):
    """In the table, in the .json, and, where they are not the official ones, in the names of the files."""
    given = ("--train=False", "--test_set=True", "--test_tasks=4", "--test_num_updates=1")
    for mode, said, suffix in (("transductive", "query batch", ""), ("support", "support set", "_bnsupport")):
        assert run_here(*given, f"--bn_mode={mode}") == 0
        assert f"batch-norm statistics: {said}" in capsys.readouterr().out
        [record] = here.glob(f"logs/*/*/test_ubs1_stepsize0.1{suffix}_numupdates1_tasks4.json")
        assert json.loads(record.read_text())["bn_mode"] == mode


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bn_mode=support",), "training is transductive"),
        (("--train=False", "--bn_mode=support", "--norm=None"), "with --norm=batch_norm"),
        (("--train=False", "--bn_mode=support", "--logdir=none", "--norm=None"), "this run has --norm=None"),
        (("--export_dir=out",), "train first"),
        (("--query=query",), "add that flag"),
        (("--predict",), "--support=: no such folder"),
        (("--predict", "--support=support"), "--query=: no such folder"),
        (("--predict", "--support=photos/train", "--query=query"), "has 6 class folders"),
        (("--predict", "--support=support", "--query=query", "--predict_csv=no/where.csv"), "could not be written"),
        (("--predict", "--export_dir=query"), "not an empty folder"),
    ],
)
def test_bad_input_is_one_line(here, capsys, flags, said):
    assert run_here(*flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: ")
    assert said in error
    assert error.count("\n") == 1


def test_files_are_read_as_the_training_reads_them(here):
    """The same bytes as in the prepared split; Omniglot's ink comes out bright."""
    paths = sorted(map(str, (here / "photos/val").glob("*/*")))
    split = load_split("folder", "photos", "val", image_size=20, channels=3)
    np.testing.assert_array_equal(
        read_images(paths, "folder", image_size=20, channels=3).reshape(len(paths), -1), split.images
    )


def test_a_drawing_is_inverted(tmp_path):
    ink = np.zeros([105, 105], bool)
    ink[:52] = True
    Image.fromarray(~ink).save(tmp_path / "drawing.png")
    [image] = read_images([str(tmp_path / "drawing.png")], "omniglot", image_size=28, channels=1)
    assert image.shape == (28, 28, 1)
    assert (image[:14] == 255).all()
    assert (image[14:] == 0).all()
