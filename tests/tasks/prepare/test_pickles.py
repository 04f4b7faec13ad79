"""miniImageNet from cached pickles, which cannot do harm."""

import collections
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maml.tasks import safe_pickle
from maml.tasks.images import load_split
from tests.tasks.prepare.fixtures import PER_CLASS, SMALL, check_result, pickled, pixels, refused, run, write_pickles


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
