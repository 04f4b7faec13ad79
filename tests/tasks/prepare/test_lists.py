"""miniImageNet from Ravi & Larochelle's images and lists, and lists that are none."""

import io
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maml.errors import UserError
from maml.tasks.prepare import lists
from tests.tasks.prepare.fixtures import (
    POSITIONS,
    SMALL,
    check_result,
    jpeg,
    listed_name,
    refused,
    result,
    run,
    state,
    write_images,
    write_lists,
)

DATA = os.environ.get("MAML_DATA", "")


def test_images_and_lists(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    before = state(tmp_path / "ravi")
    assert run("--source", tmp_path / "ravi") == 0
    assert "images/ and lists, 20 images" in capsys.readouterr().out
    check_result()
    expected = {
        f"{split}/{label}/{listed_name(label, position)}": jpeg(label, position)
        for split, labels in SMALL.items()
        for label in labels
        for position in POSITIONS
    }
    assert result() == expected, "images of the right size are copied byte for byte"
    assert state(tmp_path / "ravi") == before, "the originals were touched"


def test_the_default_folder_is_prepared_in_place(tmp_path):
    (tmp_path / "data").mkdir()
    write_images(tmp_path / "data" / "miniImagenet")
    assert run() == 0
    check_result()
    assert run() == 0, "a second run finds everything done"


def test_other_sizes_are_resized_and_saved_as_the_official_script_does(tmp_path):
    write_images(tmp_path / "ravi", size=100)
    assert run("--source", tmp_path / "ravi") == 0
    label, position = SMALL["val"][0], POSITIONS[0]
    with Image.open(io.BytesIO(jpeg(label, position, 100))) as image:
        official = io.BytesIO()
        image.resize((84, 84), resample=Image.Resampling.LANCZOS).save(official, "JPEG")
    assert result()[f"val/{label}/{listed_name(label, position)}"] == official.getvalue()


def test_missing_images_are_counted(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    gone = [listed_name("n01532829", position) for position in POSITIONS[:2]]
    for name in gone:
        (tmp_path / "ravi" / "images" / name).unlink()
    message = refused(capsys, "--source", tmp_path / "ravi")
    assert "2 of the listed images are missing" in message and gone[0] in message


def test_all_unreadable_images_are_named(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    broken = sorted((tmp_path / "ravi" / "images").iterdir())[:7]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-200])
    assert run("--source", tmp_path / "ravi") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines[:-1]] == [str(file) for file in broken]
    assert "7 of 20 images are unreadable" in lines[-1]
    for file in broken:
        file.write_bytes(jpeg(file.name[:9], int(file.name[9:17])))
    assert run("--source", tmp_path / "ravi") == 0
    check_result()


@pytest.mark.parametrize(("end", "start"), [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff"), ("\n\n", "")])
def test_lists_of_other_systems(tmp_path, end, start):
    write_images(tmp_path / "ravi")
    write_lists(tmp_path / "ravi", end, start)
    assert run("--source", tmp_path / "ravi") == 0
    check_result()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has none"),
        ("name,class\na,b\n", "has name, class"),
        ("filename,label\n../../etc/passwd,n01532829\n", "'../../etc/passwd'"),
        ("filename,label\n/n0153282900000001.jpg,n01532829\n", "'/n01532829"),
        ("filename,label\nn0153282900000001.jpg\n", "line 2"),
        ("filename,label\nn0153282900000001.jpg,n01558993\n", "line 2"),
        ("filename,label\nn0153282900000001.jpg,n01532829\nn0153282900000001.jpg,n01532829\n", "line 3: .* twice"),
        ("filename,label\nn0153282900000001.jpg,n01532829\n", "lacks 1 of 2 classes: n01558993"),
        ("filename,label\n" + '"' + "x" * 200_000, "cannot be read as a list"),
        ("filename,label\n\0\n", "line 2|cannot be read"),
    ],
)
def test_bad_lists(tmp_path, capsys, text, complaint):
    write_images(tmp_path / "ravi")
    (tmp_path / "ravi" / "train.csv").write_text(text)
    message = refused(capsys, "--source", tmp_path / "ravi")
    assert re.search(complaint, message)


def test_a_list_that_is_no_text(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    (tmp_path / "ravi" / "val.csv").write_bytes(b"filename,label\n\xff\xfe\n")
    assert "val.csv cannot be read as a list" in refused(capsys, "--source", tmp_path / "ravi")


def test_missing_lists(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    (tmp_path / "ravi" / "test.csv").unlink()
    assert "no test.csv" in refused(capsys, "--source", tmp_path / "ravi")
    for split in ("train", "val"):
        (tmp_path / "ravi" / f"{split}.csv").unlink()
    assert "no train.csv" in refused(capsys, "--source", tmp_path / "ravi")
    write_lists(tmp_path / "lists")
    assert run("--source", tmp_path / "ravi", "--csv_dir", tmp_path / "lists") == 0


def test_another_split_of_that_name_is_refused(tmp_path, capsys):
    write_images(tmp_path / "ravi")
    text = (tmp_path / "ravi" / "train.csv").read_text().replace("n01558993", "n02085620")
    (tmp_path / "ravi" / "train.csv").write_text(text)
    message = refused(capsys, "--source", tmp_path / "ravi")
    assert "train has 1 classes that are not Ravi & Larochelle's (n02085620)" in message and "n01558993" in message
    assert not Path("data").exists()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_no_list_of_any_bytes_ends_otherwise_than_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    _one_line_or_rows(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=12)), max_size=4))
def test_names_in_lists_stay_plain(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    lines = ["filename,label", *(f'"{name}","{label}"' for name, label in rows)]
    path.write_bytes("\n".join(lines).encode("utf-8", "replace"))
    _one_line_or_rows(path)


def _one_line_or_rows(path: Path) -> None:
    try:
        rows = lists.read_list(str(path))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(os.path.basename(row.name) == row.name and row.name.startswith("n") for row in rows)


def test_official_classes(monkeypatch):
    monkeypatch.undo()
    assert [len(lists.CLASSES[split]) for split in ("train", "val", "test")] == [64, 16, 20]
    assert len(set(sum(lists.CLASSES.values(), ()))) == 100
    assert lists.PER_CLASS == 600


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(DATA, "miniimagenet", "train.csv")),
    reason="set MAML_DATA to a folder with miniimagenet/{train,val,test}.csv",
)
def test_official_lists(monkeypatch):
    monkeypatch.undo()
    found = lists.read_lists([os.path.join(DATA, "miniimagenet")])
    assert [len(rows) for rows in found.values()] == [38400, 9600, 12000]
    positions = [row.position for rows in found.values() for row in rows]
    assert min(positions) == 1 and max(positions) == 1300, "places from 1 in classes of at most 1300 images"
