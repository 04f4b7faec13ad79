"""Folders of classes as people have them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml.errors import UserError
from maml.tasks import class_folders
from maml.tasks.class_folders import read_classes, shared_between_splits, split_folders
from maml.tasks.images import load_split, own_size, sized
from tests.image_fixtures import write_class_folders, write_omniglot_folders


def picture(path: Path, color=(1, 2, 3), size=(20, 20), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color if mode == "RGB" else color[0]).save(path)


def test_what_is_no_image_is_counted_and_passed_over(tmp_path, capsys):
    write_class_folders(tmp_path, {"train": 2}, per_class=2, size=20)
    for name in ("README.txt", "train_00/notes.md", "train_00/Picasa.ini", "@eaDir/x.jpg", "loose.png", "train_01/.DS"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "train" / "hollow").mkdir()
    split = load_split("folder", str(tmp_path), "train", image_size=20, channels=3)
    assert split.names == ("train_00", "train_01") and split.counts.tolist() == [2, 2]
    said = capsys.readouterr().err
    assert "3 files are no images of a class: README.txt, loose.png, train_00/notes.md" in said
    assert "1 folders hold no images: hollow" in said


def test_nested_folders_are_classes_where_the_images_lie(tmp_path):
    for name in ("animals/cat", "animals/dog", "plants/oak"):
        picture(tmp_path / name / "1.png")
    assert list(read_classes(str(tmp_path)).paths) == ["animals/cat", "animals/dog", "plants/oak"]


def test_a_folder_of_images_and_of_classes_is_not_guessed(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "cat" / "old" / "2.png")
    with pytest.raises(UserError, match=r"cat: holds images and folders with images \(old\)") as caught:
        read_classes(str(tmp_path))
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("val", ["val", "validation", "valid", "Val"])
@pytest.mark.parametrize("around", ["", "photos/", "a/photos/"])
def test_usual_names_and_folders_around_the_splits(tmp_path, val, around):
    for split in ("Train", val, "test"):
        picture(tmp_path / around / split / "cat" / "1.png")
    found = split_folders(str(tmp_path))
    assert {split: os.path.basename(path) for split, path in found.items()} == {
        "train": "Train",
        "val": val,
        "test": "test",
    }
    assert load_split("folder", str(tmp_path), "val", image_size=20, channels=3).names == ("cat",)


def test_two_folders_of_one_split_are_not_guessed(tmp_path):
    for split in ("train", "val", "valid"):
        picture(tmp_path / split / "cat" / "1.png")
    with pytest.raises(UserError, match="val and valid are both there"):
        split_folders(str(tmp_path))


def test_omniglot_in_a_folder_of_its_own_name(tmp_path):
    write_omniglot_folders(tmp_path / "plain")
    for half in ("images_background", "images_evaluation"):
        (tmp_path / "nested" / half).mkdir(parents=True)
        os.rename(tmp_path / "plain" / half, tmp_path / "nested" / half / half)
    wrapped = tmp_path / "wrapped" / "omniglot"
    wrapped.mkdir(parents=True)
    names = load_split("omniglot", str(tmp_path / "nested"), "val", image_size=28, channels=1).names
    for half in ("images_background", "images_evaluation"):
        os.rename(tmp_path / "nested" / half, wrapped / half)
    assert load_split("omniglot", str(tmp_path / "wrapped"), "val", image_size=28, channels=1).names == names
    assert len(names) == 100


def test_classes_and_copies_in_two_splits_are_named(tmp_path):
    write_class_folders(tmp_path, {"train": 2, "val": 2, "test": 2}, per_class=3, size=20)
    assert shared_between_splits(str(tmp_path)) == []
    picture(tmp_path / "val" / "train_00" / "other.png")
    for copy in ("test/test_01/copy.png", "test/test_01/other.png", "train/train_01/000_again.png"):
        os.link(tmp_path / "train" / "train_01" / "000.png", tmp_path / copy)
    lines = shared_between_splits(str(tmp_path))
    assert lines[0] == "1 class is in train and in val: train_00"
    pair = os.path.join("train", "train_01", "000.png"), os.path.join("test", "test_01", "copy.png")
    assert lines[1] == f"1 image is in more than one split, byte for byte: {pair[0]} = {pair[1]}"


def test_what_lies_in_two_splits_is_looked_for_once(tmp_path, monkeypatch):
    write_class_folders(tmp_path, {"train": 2, "val": 2}, per_class=3, size=20)
    os.link(tmp_path / "train/train_00/000.png", tmp_path / "val/val_01/copy.png")
    lines = shared_between_splits(str(tmp_path))
    read, ends = [], class_folders._end
    monkeypatch.setattr(class_folders, "_end", lambda path: read.append(path) or ends(path))
    assert shared_between_splits(str(tmp_path)) == lines and len(lines) == 1 and not read
    os.unlink(tmp_path / "val/val_01/copy.png")
    assert shared_between_splits(str(tmp_path)) == [] and read
    for path in (tmp_path / ".cache").iterdir():  # damaged
        path.write_bytes(path.read_bytes()[:-1])
    os.link(tmp_path / "train/train_00/000.png", tmp_path / "val/val_01/copy.png")
    assert shared_between_splits(str(tmp_path)) == lines


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [((28, 28), "L", (28, 1)), ((32, 32), "RGB", (32, 3)), ((40, 30), "RGB", None), ((30, 30), "I;16", (30, 1))],
)
def test_size_and_channels_are_those_of_the_images(tmp_path, size, mode, expected):
    for index in range(3):
        picture(tmp_path / "train" / "cat" / f"{index}.png", size=size, mode=mode)
    assert own_size(str(tmp_path)) == expected
    given, notes = sized({"datasource": "folder", "data_dir": str(tmp_path)})
    assert (given.get("image_size", 84), given.get("channels", 3)) == (expected or (84, 3))
    assert bool(notes) == bool(expected)


def test_a_size_that_is_not_the_images_own_is_said(tmp_path):
    picture(tmp_path / "train" / "cat" / "0.png", size=(28, 28))
    given, notes = sized({"datasource": "folder", "data_dir": str(tmp_path), "image_size": 84})
    assert given["image_size"] == 84
    assert notes == [f"--image_size=84: the images in {tmp_path} have 28, and are converted"]


def test_photos_of_several_sizes_take_the_default(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(5):
        picture(tmp_path / "train" / "cat" / f"{index}.png", size=tuple(rng.integers(50, 90, 2)))
    assert sized({"datasource": "folder", "data_dir": str(tmp_path)})[1] == []
