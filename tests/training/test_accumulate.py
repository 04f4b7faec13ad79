"""`--accumulate`: the same tasks in parts, and the same update."""

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator, Part
from maml.errors import UserError
from maml.own.tasks import OwnTasks
from maml.training.memory import least_memory
from maml.training.updates import batch_gradient, make_update
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

SMALL = {"image_size": 8, "channels": 1, "num_classes": 3, "update_batch_size": 1, "query_size": 2, "num_filters": 2}
SOURCES = {
    "sinusoid": {},
    "oracle": {"baseline": "oracle", "metatrain_iterations": 2},
    "images": SMALL | {"datasource": "folder"},
    "images, changed": SMALL | {"datasource": "folder", "flip": True, "crop": 1, "rotate_classes": True},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_class_folders(folder, {"train": 5, "val": 4, "test": 4}, 6, size=8, channels=1)
    return str(folder)


def config_of(source, photos, **flags):
    given = SOURCES[source] | {"meta_batch_size": 6} | flags
    return Config.from_flags(given | ({"data_dir": photos} if "datasource" in given else {}))


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("source", SOURCES)
def test_the_parts_of_a_batch_are_the_batch_to_the_bit(source, count, photos):
    data = DataGenerator(config_of(source, photos), ("train",))
    whole = data.episodes("train", 5, 6)
    compiled = tf.function(lambda index: data.episodes("train", tf.constant(5), 6, Part(index, count)), autograph=False)
    for parts in ([data.episodes("train", 5, 6, Part(i, count)) for i in range(count)], map(compiled, tf.range(count))):
        for expected, *found in zip(whole, *parts, strict=True):
            assert found[0].shape == [6 // count, *expected.shape[1:]]
            np.testing.assert_array_equal(tf.concat(found, 0), expected)


def test_the_parts_of_ones_own_tasks_are_the_batch_to_the_bit():
    def task(rng):
        x, y = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=(4, 1)).astype(np.float32)
        return x[:2], y[:2], x[2:], y[2:]

    data = OwnTasks(Config.from_flags({"datasource": "own", "loss": "mse", "norm": "None"}), {"train": task})
    parts = [data.episodes("train", 3, 6, Part(i, 3)) for i in range(3)]
    for expected, *found in zip(data.episodes("train", 3, 6), *parts, strict=True):
        np.testing.assert_array_equal(tf.concat(found, 0), expected)


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("sinusoid", {"norm": "None"}),
        (
            "images",
            {"num_updates": 2, "multi_step_loss_num_epochs": 1, "total_iter_per_epoch": 2, "meta_batch_size": 2},
        ),
        ("images", {"algorithm": "protonet", "meta_batch_size": 4, "train_num_classes": 3}),
    ],
    ids=str,
)
def test_the_update_and_the_summaries_are_those_of_the_whole_batch(source, flags, photos, eagerly):
    """Three updates, and what is measured behind them."""
    found = []
    for accumulate in (1, 2):
        steps = {} if flags.get("algorithm") == "protonet" else {"test_num_updates": 2}
        config = config_of(source, photos, accumulate=accumulate, **flags, **steps)
        model, data = algorithms.build(config), DataGenerator(config, ("train",))
        found.append(make_update(model, data, 3)(model.init_state(), tf.constant(0), tf.constant(3)))
    for one, other in zip(*map(tf.nest.flatten, found), strict=True):
        np.testing.assert_array_equal(other, one)


def test_the_gradient_is_the_mean_and_not_the_sum():
    config = Config.from_flags({"norm": "None", "meta_batch_size": 6, "dtype": "float64"})
    model, data = algorithms.build(config), DataGenerator(config)
    weights, episodes = model.init_state().weights, data.episodes("train", 2, 6)
    loss, gradient = model.gradient(weights, episodes, 2)
    model.config = config.replace(accumulate=3)
    in_parts = tf.function(lambda: batch_gradient(model, data, weights, tf.constant(2)), autograph=False)()
    np.testing.assert_allclose(in_parts[0], loss, rtol=1e-12)
    for name, slope in gradient.items():
        np.testing.assert_allclose(in_parts[1][name], slope, rtol=1e-9, atol=1e-14)


def test_a_batch_that_does_not_divide_is_refused_with_the_way_out():
    with pytest.raises(
        UserError, match=r"accumulate=4: --meta_batch_size=25 does not divide .* the nearest number that does is 5"
    ):
        Config.from_flags({"accumulate": 4})
    with pytest.raises(UserError, match="has no meaning with --algorithm=reptile"):
        Config.from_flags({"algorithm": "reptile", "accumulate": 5})


def test_a_batch_in_parts_needs_less_memory():
    whole, parts = (Config.from_flags({"meta_batch_size": 1000, "accumulate": n}) for n in (1, 10))
    assert least_memory(parts) == least_memory(whole) / 10


def test_a_run_may_go_on_in_parts(tmp_path, monkeypatch, capsys, eagerly):
    """It is the same run: the flag changes no more than rounding."""
    monkeypatch.chdir(tmp_path)
    flags = ("--norm=None", "--meta_batch_size=2", "--val_tasks=0")
    assert run_here(*flags, "--metatrain_iterations=2") == 0
    assert run_here(*flags, "--metatrain_iterations=4", "--accumulate=2") == 0
    assert "Resuming from iteration 2" in capsys.readouterr().out
    assert maml.load("logs").config.accumulate == 2
