"""One's own classes, divided into splits."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import proc_images
from maml.errors import UserError
from maml.tasks.images import load_split
from maml.tasks.prepare import own
from tests.image_fixtures import write_class_folders
from tests.tasks.prepare.fixtures import refused, run, state


def test_own_classes_are_divided(tmp_path, capsys):
    write_class_folders(tmp_path, {"photos": 10}, per_class=3, size=40, suffix=".jpg")
    before = state(tmp_path / "photos")
    arguments = ["--make_splits", "--source", "photos", "--output", "own", "--image_size", "28", "--channels", "1"]
    assert run(*arguments, "--splits", "0.6,0.2,0.2") == 0
    assert "6 train, 2 val, 2 test classes" in capsys.readouterr().out
    splits = [load_split("folder", "own", split, image_size=28, channels=1) for split in ("train", "val", "test")]
    assert [len(split.names) for split in splits] == [6, 2, 2]
    assert len({name for split in splits for name in split.names}) == 10
    assert all(split.counts.tolist() == [3] * len(split.names) for split in splits)
    with Image.open(next(Path("own").glob("train/*/*.jpg"))) as image:
        assert image.size == (28, 28) and image.mode == "L"
    assert state(tmp_path / "photos") == before


def test_the_seed_fixes_the_division():
    names = [f"class{number}" for number in range(20)]
    assert own.divide(names, "10,5,5", 1) == own.divide(names, "10,5,5", 1)
    assert own.divide(names, "10,5,5", 1) != own.divide(names, "10,5,5", 2)


@given(st.integers(3, 200), st.integers(0, 5), st.tuples(*[st.integers(1, 60)] * 3), st.booleans())
def test_divisions_are_disjoint_and_of_the_size_asked_for(number, seed, counts, as_fractions):
    names = [str(name) for name in range(number)]
    text = ",".join(repr(count / sum(counts)) if as_fractions else str(count) for count in counts)
    try:
        parts = own.divide(names, text, seed)
    except UserError:
        assert sum(counts) > number or as_fractions
        return
    drawn = [name for part in parts.values() for name in part]
    assert len(drawn) == len(set(drawn)) and set(drawn) <= set(names)
    if as_fractions:
        assert len(drawn) == number
        for part, count in zip(parts.values(), counts, strict=True):
            assert abs(len(part) - number * count / sum(counts)) <= 1
    else:
        assert [len(part) for part in parts.values()] == list(counts)


@pytest.mark.parametrize(
    "splits", ["", "1,2", "1,2,3,4", "a,b,c", "5,5,5", "0.5,0.2,0.2", "0.98,0.01,0.01", "-1,2,2", "0,5,5", "nan,1.,1"]
)
def test_bad_divisions(splits):
    with pytest.raises(UserError, match="--splits="):
        own.divide([str(name) for name in range(10)], splits, 1)


@pytest.mark.parametrize("classes", [5, 6, 8, 11, 40])
def test_the_division_that_is_advised_fits(classes):
    names = [str(name) for name in range(classes)]
    with pytest.raises(UserError) as refusal:
        own.divide(names, "0.99,0.005,0.005", 1)
    if classes < 6:
        assert "at least 6" in str(refusal.value)
    else:
        advised = own.divide(names, str(refusal.value).split("--splits ")[1], 1)
        assert min(map(len, advised.values())) >= 2 and sum(map(len, advised.values())) == classes


def test_own_data_that_cannot_be_divided(tmp_path, capsys):
    write_class_folders(tmp_path, {"photos": 6}, per_class=1)
    assert "needs --output" in refused(capsys, "--make_splits", "--source", "photos")
    assert "needs --output" in refused(capsys, "--make_splits", "--source", "photos", "--output", "photos")
    assert "needs --output" in refused(capsys, "--make_splits", "--source", "photos", "--output", "photos/own")
    assert "no such folder" in refused(capsys, "--make_splits", "--source", "none", "--output", "own")
    assert "val would have 1 class, and a task needs 2" in refused(
        capsys, "--make_splits", "--source", "photos", "--output", "own", "--splits", "1,1,1"
    ).replace("train would", "val would")
    assert "train would have 0 classes of 2 images or more, and a task needs 2" in refused(
        capsys, "--make_splits", "--source", "photos", "--output", "own", "--splits", "2,2,2"
    )
    assert not Path("own").exists(), "nothing is written for a split that no training takes"


def test_a_class_of_a_single_image_does_not_count(tmp_path, capsys):
    """The command that is printed leaves it out, and the training does."""
    write_class_folders(tmp_path / "photos", {"train": 6, "val": 4, "test": 4}, per_class=8, size=20)
    write_class_folders(tmp_path / "more", dict.fromkeys(("train", "val", "test"), 7), per_class=1, size=20)
    for split in ("train", "val", "test"):
        shutil.move(f"more/{split}/{split}_06", f"photos/{split}/single")
    assert proc_images.main(["--make_splits", "--source", "photos", "--output", "own"]) == 0
    printed = capsys.readouterr().out
    assert "is split already" in printed
    assert "--num_classes=4 --update_batch_size=4 --query_size=4" in printed
