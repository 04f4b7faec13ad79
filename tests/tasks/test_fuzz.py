"""Whatever bytes a file holds, reading it gives a result or one line.

The lists and pickles of miniImageNet have such tests in prepare/, too.
"""

import dataclasses
import json
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maml.config import Config
from maml.config.checks import check
from maml.errors import UserError
from maml.tasks import cache, safe_pickle
from maml.training import runs

SHORT = settings(max_examples=100, deadline=None)
FIELDS = [field.name for field in dataclasses.fields(Config)]
NAMES = ["a" * 100]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def read_run(folder, data: bytes) -> None:
    """Reads a folder with this run.json; a Config or one line."""
    (folder / runs.RUN_FILE).write_bytes(data)
    for read in (lambda: runs.load_config(folder), lambda: runs.find_run({"logdir": str(folder)})[1]):
        try:
            config = read()
        except UserError as error:
            assert str(error).isprintable()
        else:
            check(config)
            assert config.exp_string


@SHORT
@given(st.binary(max_size=60))
def test_run_records_of_any_bytes(tmp_path_factory, data):
    read_run(tmp_path_factory.getbasetemp(), data)


@SHORT
@given(JSON)
def test_run_records_of_any_json(tmp_path_factory, value):
    read_run(tmp_path_factory.getbasetemp(), json.dumps(value).encode())


@SHORT
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), JSON, max_size=4), JSON)
def test_run_records_of_any_setting(tmp_path_factory, values, trained):
    read_run(tmp_path_factory.getbasetemp(), json.dumps({"config": values, "trained": trained}).encode())


@SHORT
@given(st.data())
def test_run_records_with_some_bytes_changed(tmp_path_factory, data):
    record = bytearray(json.dumps({"config": Config().to_dict(), "trained": ""}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    read_run(tmp_path_factory.getbasetemp(), bytes(record))


def test_run_records_nested_too_deep_with_long_numbers_or_line_breaks(tmp_path):
    for data in (
        b"[" * 100_000,
        b'{"config": {"norm": "a\\nb"}}',
        b'{"a":' * 100_000,
        b"9" * 5000,
        b'{"config":{"seed":' + b"9" * 4000 + b"}}",
    ):
        read_run(tmp_path, data)


@SHORT
@given(st.data())
def test_pickles_with_some_bytes_changed(data):
    """None runs anything: the reader knows no name that could, so all that it returns are its own few types."""
    whole = pickle.dumps({"image_data": np.zeros((2, 3), np.uint8), "class_dict": {"a": [0, 1]}}, 2)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = safe_pickle.loads(bytes(changed))
    except Exception as error:
        assert not isinstance(error, AssertionError)
    else:
        known = (dict, list, tuple, set, range, str, bytes, int, float, bool, type(None), type, safe_pickle.Array)
        assert isinstance(value, known) or callable(value)


@SHORT
@given(st.data())
def test_caches_with_some_bytes_changed(tmp_path_factory, data):
    """A cache whose header was changed is not used; one whose pixels were changed has its size and facts."""
    place = str(tmp_path_factory.getbasetemp() / "x.images")
    cache.store([place], "key", np.arange(12, dtype=np.uint8).reshape(3, 4), {"names": NAMES})
    with open(place, "rb") as file:
        changed = bytearray(file.read())
    position = data.draw(st.integers(0, len(changed) - 1))
    if data.draw(st.booleans()):
        del changed[position:]
    else:
        changed[position] = data.draw(st.integers(0, 255))
    with open(place, "wb") as file:
        file.write(changed)
    found = cache.load(place, "key")
    if found is not None:
        assert found[0].shape == (3, 4)
        assert found[1] == {"names": NAMES}
