"""Preparing miniImageNet from every form it comes in, and refusing what is not miniImageNet."""

import collections
import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import proc_images
from maml.errors import UserError
from maml.tasks import safe_pickle
from maml.tasks.images import load_split
from maml.tasks.prepare import lists, own, writing
from tests.image_fixtures import noisy, write_class_folders

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("MAML_DATA", "")
# A miniImageNet of 5 classes x 4 images stands in for the 100 x 600.
SMALL = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112", "n01981276")}
PER_CLASS = 4
POSITIONS = (1, 3, 4, 6)  # the listed images among the six of a class
NUMBERS = (2, 10, 9, 100, 1000, 77)  # ILSVRC2012's numbers of these six, in no order
IN_ORDER = sorted(NUMBERS)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """The small data set is the official one, and programs run in an empty folder."""
    monkeypatch.setattr(lists, "CLASSES", SMALL)
    monkeypatch.setattr(lists, "PER_CLASS", PER_CLASS)
    monkeypatch.chdir(tmp_path)


def pixels(label: str, number: int, size: int = 84) -> np.ndarray:
    """The image of a number, another one for each class."""
    rng = np.random.default_rng([int(label[1:]), number])
    return noisy(rng.integers(0, 256, (4, 4, 3), np.uint8), size, rng)


def jpeg(label: str, number: int, size: int = 84) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(label, number, size)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def listed_name(label: str, position: int) -> str:
    return f"{label}{position:08d}.jpg"


def write_lists(folder: Path, end: str = "\n", start: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in SMALL.items():
        rows = [f"{listed_name(label, position)},{label}" for label in labels for position in POSITIONS]
        text = start + end.join(["filename,label", *rows]) + end
        (folder / f"{split}.csv").write_bytes(text.encode())


def write_images(folder: Path, size: int = 84) -> None:
    """Ravi & Larochelle's form."""
    write_lists(folder)
    (folder / "images").mkdir()
    for label in sum(SMALL.values(), ()):
        for position in POSITIONS:
            (folder / "images" / listed_name(label, position)).write_bytes(jpeg(label, position, size))


def ilsvrc_class(label: str, size: int = 120) -> dict[str, bytes]:
    """The six images of a class by ILSVRC2012's names."""
    return {f"{label}_{number}.JPEG": jpeg(label, number, size) for number in NUMBERS}


def write_ilsvrc_folders(folder: Path) -> None:
    for label in (*sum(SMALL.values(), ()), "n99999999"):
        (folder / label).mkdir(parents=True)
        for name, data in ilsvrc_class(label).items():
            (folder / label / name).write_bytes(data)


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ilsvrc_tars() -> dict[str, bytes]:
    return {f"{label}.tar": tar_of(ilsvrc_class(label)) for label in sum(SMALL.values(), ())}


def pickled(split: str, labels: tuple[str, ...] | None = None) -> dict:
    """What a cached pickle of a split holds."""
    labels = labels or SMALL[split]
    images = [pixels(label, row) for row in range(PER_CLASS) for label in labels]
    rows = {label: [len(labels) * row + place for row in range(PER_CLASS)] for place, label in enumerate(labels)}
    return {"image_data": np.stack(images), "class_dict": rows}


def write_pickles(folder: Path, val: str = "val", protocol: int = pickle.HIGHEST_PROTOCOL) -> None:
    folder.mkdir(exist_ok=True)
    for split in SMALL:
        part = val if split == "val" else split
        with open(folder / f"mini-imagenet-cache-{part}.pkl", "wb") as file:
            pickle.dump(pickled(split), file, protocol)


def run(*arguments) -> int:
    return proc_images.main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """The one line with which the program ends."""
    capsys.readouterr()
    assert run(*arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def result(folder: Path = Path("data/miniImagenet")) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*/*"))}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below a folder with its time of change."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def check_result(output: Path = Path("data/miniImagenet")) -> None:
    for split, labels in SMALL.items():
        loaded = load_split("miniimagenet", str(output), split, image_size=84, channels=3)
        assert loaded.names == labels and loaded.counts.tolist() == [PER_CLASS] * len(labels)


# Ravi & Larochelle's images


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


# ILSVRC2012


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


# Cached pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("val", ["val", "validation"])
def test_pickles_lose_nothing(tmp_path, protocol, val):
    write_pickles(tmp_path / "pickles", val, protocol)
    assert run("--source", tmp_path / "pickles") == 0
    check_result()
    for split, labels in SMALL.items():
        loaded = load_split("miniimagenet", "data/miniImagenet", split, image_size=84, channels=3)
        expected = [pixels(label, row) for label in labels for row in range(PER_CLASS)]
        np.testing.assert_array_equal(loaded.images.reshape(-1, 84, 84, 3), np.stack(expected))


def test_pickles_with_val_and_test_exchanged(tmp_path):
    """One widely copied script did that; classes go where they belong."""
    write_pickles(tmp_path / "pickles")
    names = [tmp_path / "pickles" / f"mini-imagenet-cache-{part}.pkl" for part in ("val", "test", "x")]
    names[0].rename(names[2])
    names[1].rename(names[0])
    names[2].rename(names[1])
    assert run("--source", tmp_path / "pickles") == 0
    check_result()


def python2_pickle(images: np.ndarray, classes: dict[str, list[int]]) -> bytes:
    """What Python 2's cPickle writes of the same (protocol 2): its str, and NumPy's old module names."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    shape = b"(" + b"".join(number(n) for n in images.shape) + b"t"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + number(1) + shape + kind + b"\x89" + text(images.tobytes()) + b"tb"
    rows = b"".join(
        text(name.encode()) + b"](" + b"".join(map(number, values)) + b"e" for name, values in classes.items()
    )
    return b"\x80\x02}(" + text(b"image_data") + array + text(b"class_dict") + b"}(" + rows + b"uu."


def test_pickles_of_python_2(tmp_path):
    (tmp_path / "pickles").mkdir()
    for split in SMALL:
        values = pickled(split)
        data = python2_pickle(values["image_data"], values["class_dict"])
        assert pickle.loads(data, encoding="latin1")["class_dict"] == values["class_dict"], "a valid pickle"
        (tmp_path / "pickles" / f"mini-imagenet-cache-{split}.pkl").write_bytes(data)
    assert run("--source", tmp_path / "pickles") == 0
    check_result()


def test_one_pickle_is_missing(tmp_path, capsys):
    write_pickles(tmp_path / "pickles")
    (tmp_path / "pickles" / "mini-imagenet-cache-val.pkl").unlink()
    message = refused(capsys, "--source", tmp_path / "pickles")
    assert "mini-imagenet-cache-{train,val,test}.pkl are needed" in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_data": np.zeros((8, 84, 84), np.uint8)}, "image_data is uint8 (8, 84, 84)"),
        ({"image_data": np.zeros((8, 84, 84, 3), np.float32)}, "image_data is float32"),
        ({"class_dict": {"n01532829": [0, 1, 2, 8], "n01558993": [4, 5, 6, 7]}}, "rows twice or beyond the 8"),
        ({"class_dict": {"n01532829": [0, 1, 2, -1], "n01558993": [4, 5, 6, 7]}}, "rows twice or beyond the 8"),
        ({"class_dict": {"n01532829": [0, 1, 2, 4], "n01558993": [4, 5, 6, 7]}}, "rows twice or beyond the 8"),
        ({"class_dict": {"n01532829": [0, 1, 2], "n01558993": [4, 5, 6, 7]}}, "n01532829 (3)"),
        ({"class_dict": {"n01532829": ["a"], "n01558993": [4, 5, 6, 7]}}, "does not hold image_data and class_dict"),
        ({"class_dict": {"n01532829": range(10**12), "n01558993": [4, 5, 6, 7]}}, "class_dict holds range(0, 1"),
        ({"class_dict": {"n01532829": [0, 1, 2, 3], "cat": [4, 5, 6, 7]}}, "not Ravi & Larochelle's (cat)"),
        ({"class_dict": [1]}, "does not hold image_data and class_dict"),
        ({"image_data": [1]}, "does not hold image_data and class_dict"),
    ],
)
def test_pickles_of_something_else(tmp_path, capsys, change, complaint):
    write_pickles(tmp_path / "pickles")
    (tmp_path / "pickles" / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(pickled("train") | change))
    assert complaint in refused(capsys, "--source", tmp_path / "pickles")


class Hostile:
    """Runs a command when an ordinary unpickler reads it."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Hostile()),
        pickle.dumps({"image_data": Hostile(), "class_dict": {}}),
        b"cos\nsystem\n(S'touch harmed'\ntR.",
        b"(S'touch harmed'\nios\nsystem\n.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cbuiltins\nbytearray\n(I9\ntR.",
        pickle.dumps({"image_data": np.array([Hostile()], object), "class_dict": {}}),
        pickle.dumps({"image_data": np.zeros(3, [("a", "u1")]), "class_dict": {}}),
    ],
)
def test_pickles_cannot_run_anything(tmp_path, capsys, data):
    write_pickles(tmp_path / "pickles")
    (tmp_path / "pickles" / "mini-imagenet-cache-train.pkl").write_bytes(data)
    assert "is refused" in refused(capsys, "--source", tmp_path / "pickles")
    assert not Path("harmed").exists()


def test_arrays_are_not_built_from_what_a_pickle_says_about_memory():
    """NumPy itself would take these bytes for pointers."""
    array = (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR", b"tb.")
    kind = b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR(I3\nS'|'\nNNNI8\nI1\nI63\ntb"
    with pytest.raises(safe_pickle.Refused, match="V8"):
        safe_pickle.loads(array[0] + b"(I1\n(I1\nt" + kind + b"I00\nS'AAAAAAAA'\n" + array[1])
    kind = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
    with pytest.raises(safe_pickle.Refused, match="shape"):
        safe_pickle.loads(array[0] + b"(I1\n(I1000000\nt" + kind + b"I00\nS'AAAAAAAA'\n" + array[1])


def test_no_memory_is_reserved_for_what_a_pickle_claims_to_hold():
    """These say that they hold two billion objects: 34 GB of pointers."""
    assert safe_pickle.loads(b"Nr\xff\xff\xff\x7f.") is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_no_pickle_of_any_bytes_does_harm(data):
    try:
        safe_pickle.loads(data)
    except Exception as error:
        assert not isinstance(error, AssertionError)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.zeros((0, 3), np.uint8),
        np.array([True, False]),
        np.array(5),
        np.arange(3000.0).reshape(3, 1000).T,
        np.array(["long text" * 200]),
    ],
)
def test_arrays_come_as_they_were(array, protocol):
    holder = collections.OrderedDict(value=array, scalar=np.int64(7), rows=range(3))
    found = safe_pickle.loads(pickle.dumps(holder, protocol))
    np.testing.assert_array_equal(found["value"].value, array)
    assert found["value"].value.dtype == array.dtype
    assert found["scalar"] == 7 and list(found["rows"]) == [0, 1, 2]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_may_be_larger_than_the_memory(tmp_path, protocol):
    images = [np.full(10_000, index % 256, np.uint8) for index in range(500)]
    path = tmp_path / "images.pkl"
    path.write_bytes(pickle.dumps({"images": images, "whole": np.stack(images)}, protocol))
    tracemalloc.start()
    found = safe_pickle.load(str(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < path.stat().st_size / 10
    for image, row, expected in zip(found["images"], found["whole"].value, images, strict=True):
        np.testing.assert_array_equal(image.value, expected)
        np.testing.assert_array_equal(row, expected)


# Ready class folders


def ready(folder: Path, size: int = 84) -> None:
    for split, labels in SMALL.items():
        for label in labels:
            (folder / split / label).mkdir(parents=True)
            for position in POSITIONS:
                (folder / split / label / listed_name(label, position)).write_bytes(jpeg(label, position, size))


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


# Going on, not mixing


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


# One's own data


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


# The official tables


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


def test_the_program_starts_fast_and_without_tensorflow():
    code = "import sys, proc_images, maml.tasks.omniglot; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
