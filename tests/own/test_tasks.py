"""Tasks of one's own: drawn again they are the same, and a run does not go on with others."""

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.config import Config
from maml.errors import UserError
from maml.own.tasks import OwnTasks
from tests.image_fixtures import write_class_folders
from tests.own.fixtures import TINY, L, line, model, parabola, small


def photos(folder):
    write_class_folders(folder, {"train": 3, "val": 3, "test": 3}, 3, size=4, channels=1, seed=len(folder.name))
    return maml.folder_tasks(str(folder), image_size=4, channels=1, num_classes=2, shots=1, queries=1)


def test_a_run_does_not_go_on_with_other_tasks(tmp_path, monkeypatch):
    """By the source of a function, the content of a list, a data set and images; other tasks of validation may be."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lists = [[line(rng) for _ in range(3)] for _ in range(2)]
    data_sets = [tf.data.Dataset.from_tensor_slices(tuple(map(np.stack, zip(*tasks, strict=True)))) for tasks in lists]
    images = [photos(tmp_path / name) for name in ("a", "bb")]
    pairs = {"function": (line, parabola), "list": lists, "data set": data_sets, "images": images}
    for kind, (first, second) in pairs.items():
        loss = "xent" if kind == "images" else "mse"

        def net(kind=kind):
            if kind == "images":
                return model(L.Flatten, lambda: L.Dense(2), shape=(4, 4, 1), dtype="float32")
            return small()

        for val in (first, second):
            maml.train(net(), first, val=val, loss=loss, logdir=kind, val_tasks=2, **TINY)
        with pytest.raises(UserError, match="was trained on other tasks"):
            maml.train(net(), second, loss=loss, logdir=kind, **TINY)
    maml.train(small(), parabola, logdir="function", resume=False, **TINY)
    assert maml.load("function", model=small()).test(line, 2).measure == "loss"


def test_a_data_set_of_too_many_tasks_is_refused(monkeypatch):
    monkeypatch.setattr("maml.own.tasks.MOST_TASKS", 3)
    arrays = [np.zeros((4, 2, 1)) for _ in range(4)]
    with pytest.raises(UserError, match="has more than 3 tasks; give a function of rng"):
        maml.train(small(), tf.data.Dataset.from_tensor_slices(tuple(arrays)), **TINY)


def test_tasks_are_a_function_of_seed_split_and_number():
    config = Config.from_flags({"datasource": "own", "loss": "mse", "norm": "None"})
    first, again = (OwnTasks(config, {"train": line, "val": line}) for _ in range(2))
    for index in (3, 0, 7, 3):
        for split in ("train", "val"):
            np.testing.assert_array_equal(
                first.episodes(split, index, 4).inputa, again.episodes(split, index, 4).inputa
            )
    one = again.task("train", 13)[0]
    np.testing.assert_array_equal(first.episodes("train", 3, 4).inputa[1], one)
    assert not np.array_equal(first.task("val", 13)[0], one)
