"""miniImageNet from ILSVRC2012's folders and tars."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.tasks.prepare.fixtures import (
    IN_ORDER,
    NUMBERS,
    POSITIONS,
    SMALL,
    check_result,
    ilsvrc_class,
    ilsvrc_tars,
    listed_name,
    pixels,
    refused,
    result,
    run,
    state,
    tar_of,
    write_ilsvrc_folders,
    write_lists,
)


@pytest.mark.parametrize("below", [".", "train", "ILSVRC/Data/CLS-LOC/train"])
def test_ilsvrc_folders(tmp_path, below):
    write_ilsvrc_folders(tmp_path / "imagenet" / below)
    write_lists(tmp_path / "imagenet")
    before = state(tmp_path / "imagenet")
    assert run("--source", tmp_path / "imagenet") == 0
    check_ilsvrc()
    assert state(tmp_path / "imagenet") == before


def check_ilsvrc() -> None:
    """A list's number is the place among the files in the order of their numbers, from 1."""
    check_result()
    files = result()
    for split, labels in SMALL.items():
        for label in labels:
            for position in POSITIONS:
                with Image.open(io.BytesIO(files[f"{split}/{label}/{listed_name(label, position)}"])) as image:
                    found = np.asarray(image).astype(int)
                expected = pixels(label, IN_ORDER[position - 1]).astype(int)
                others = [pixels(label, n).astype(int) for n in NUMBERS if n != IN_ORDER[position - 1]]
                distance = np.abs(found - expected).mean()
                assert all(distance < np.abs(found - other).mean() / 2 for other in others)


@pytest.mark.parametrize("form", ["one", "folder", "classes"])
def test_ilsvrc_tars(tmp_path, form):
    folder = tmp_path / "imagenet"
    write_lists(folder)
    if form == "classes":
        for name, data in ilsvrc_tars().items():
            (folder / name).write_bytes(data)
    else:
        (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(ilsvrc_tars()))
    assert run("--source", folder / "ILSVRC2012_img_train.tar" if form == "one" else folder) == 0
    check_ilsvrc()


def test_an_incomplete_class_of_ilsvrc(tmp_path, capsys):
    write_ilsvrc_folders(tmp_path / "imagenet")
    write_lists(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "n01532829" / "n01532829_10.JPEG").unlink()
    message = refused(capsys, "--source", tmp_path / "imagenet")
    assert "n0153282900000006.jpg (5 images)" in message


def test_missing_classes_of_ilsvrc(tmp_path, capsys):
    write_ilsvrc_folders(tmp_path / "imagenet")
    write_lists(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "n01532829").rename(tmp_path / "imagenet" / "n00000000")
    assert "1 of 5 classes are missing: n01532829" in refused(capsys, "--source", tmp_path / "imagenet")


@pytest.mark.parametrize("name", ["n01532829_8.png", "n01558993_8.JPEG", "n01532829_010.JPEG"])
def test_strange_files_of_ilsvrc_would_shift_the_count(tmp_path, capsys, name):
    write_ilsvrc_folders(tmp_path / "imagenet")
    write_lists(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "n01532829" / name).write_bytes(b"x")
    message = refused(capsys, "--source", tmp_path / "imagenet")
    assert name.replace("_010", "_10") in message


@pytest.mark.parametrize("name", ["../n01532829_5.JPEG", "/n01532829_5.JPEG", "x/../../n01532829_5.JPEG"])
def test_hostile_tar_members(tmp_path, capsys, name):
    tars = ilsvrc_tars() | {"n01532829.tar": tar_of(ilsvrc_class("n01532829") | {name: b"x"})}
    write_lists(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars))
    assert "would leave its folder" in refused(capsys, "--source", tmp_path / "imagenet")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_members_that_are_no_files(tmp_path, capsys, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("n01532829_5.JPEG")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    write_lists(tmp_path / "imagenet")
    tars = ilsvrc_tars() | {"n01532829.tar": buffer.getvalue()}
    (tmp_path / "imagenet" / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars))
    assert "is not a plain file" in refused(capsys, "--source", tmp_path / "imagenet")


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b compressed"])
def test_damaged_tars(tmp_path, capsys, data):
    write_lists(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "ILSVRC2012_img_train.tar").write_bytes(data)
    assert "is not a readable, uncompressed tar" in refused(capsys, "--source", tmp_path / "imagenet")


def test_a_cut_tar(tmp_path, capsys):
    write_lists(tmp_path / "imagenet")
    whole = tar_of(ilsvrc_tars())
    (tmp_path / "imagenet" / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) * 2 // 3])
    refused(capsys, "--source", tmp_path / "imagenet")
