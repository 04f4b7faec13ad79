"""What TensorBoard shows: episodes as images, histograms on request, HParams; and that none of it touches training."""

import re

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from maml.config import Config
from maml.data_generator import DataGenerator, Episodes
from maml.maml import MAML
from maml.training import episode_image
from maml.training import loop as training
from maml.training.episode_image import draw_episode, episode_rows
from maml.training.summaries import SummaryWriter
from tests.image_fixtures import write_class_folders
from tests.tiny import Interpreted, untraced

ITERATIONS = 20
FLAGS = {"datasource": "folder", "image_size": 8, "channels": 1, "conv": False, "num_classes": 3, "norm": "None"}
FLAGS |= {"num_updates": 1, "test_num_updates": 1, "meta_batch_size": 2}
FLAGS |= {"metatrain_iterations": ITERATIONS, "val_interval": 1, "val_tasks": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training with everything that can be shown, with what is shown by default, and with nothing."""
    root = tmp_path_factory.mktemp("runs")
    write_class_folders(root / "photos", {"train": 4, "val": 3}, 10, size=8, channels=1)
    trained = {}
    for name, flags in {"all": {"histograms": True}, "default": {}, "nothing": {"log": False}}.items():
        config = Config.from_flags(FLAGS | flags | {"data_dir": str(root / "photos")})
        (root / name).mkdir()
        data = DataGenerator(config, ("train", "val"))
        model = MAML(config, Interpreted("fc", 8 * 8, 3, (8,), "None"))
        with untraced(block=1):
            trained[name] = (root / name, training.train(config, model, data, root / name))
    return trained


def events(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def test_what_is_shown_does_not_change_a_bit_of_the_training(runs):
    states = [tf.nest.flatten(trained.state) for _, trained in runs.values()]
    for one, *others in zip(*states, strict=True):
        assert all(np.array_equal(one, other) for other in others)
    assert not any(path.is_dir() for path in runs["nothing"][0].iterdir())
    assert not list(runs["nothing"][0].glob("events*"))


def test_histograms_of_weights_and_gradients_on_request_only(runs):
    wanted = {f"{what}/{name}" for what in ("weights", "gradients") for name in runs["all"][1].state.weights}
    for run, expected in (("all", wanted), ("default", set())):
        found = events(runs[run][0] / "train")
        assert {tag for tag in found.Tags()["tensors"] if tag.startswith(("weights/", "gradients/"))} == expected
    [*_, last] = events(runs["all"][0] / "train").Tensors("weights/w1")
    left, right, counts = tf.make_ndarray(last.tensor_proto).T
    w1 = runs["all"][1].state.weights["w1"].numpy()
    assert last.step == ITERATIONS
    assert counts.sum() == w1.size
    np.testing.assert_allclose([left.min(), right.max()], [w1.min(), w1.max()])


def test_hparams_show_the_flags_and_the_validation(runs):
    """The metric's tag, in the sub-folder that its group names, is what validation wrote."""
    folder = runs["default"][0]
    content = {
        tag: events(folder).SummaryMetadata(tag).plugin_data.content
        for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG)
    }
    flags = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    assert flags["meta_batch_size"].number_value == 2
    assert flags["datasource"].string_value == "folder"
    assert "logdir" not in flags
    metrics = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG]).metric_infos
    assert {metric.display_name for metric in metrics} == {"validation loss", "validation accuracy"}
    for metric in metrics:
        values = events(folder / metric.name.group).Tensors(metric.name.tag)
        assert [value.step for value in values] == list(range(1, ITERATIONS + 1))
    assert "flags" in events(folder).Tags()["tensors"]


def test_a_run_draws_ten_episodes_however_often_it_validates(runs):
    drawn = events(runs["default"][0] / "val").Tensors("episode")
    assert [event.step for event in drawn] == list(range(2, ITERATIONS + 1, 2))
    width, height, png = tf.make_ndarray(drawn[-1].tensor_proto)
    assert tf.io.decode_png(png).shape == (int(height), int(width), 3)


def episode(shots: int, queries: int, classes: int, seed: int = 0) -> Episodes:
    """One task of 60 × 60 images, the classes of each set in random order; every image has a red of its own."""
    rng = np.random.default_rng(seed)
    reds = iter(np.arange(20, 20 + (shots + queries) * classes) / 255)
    arrays = []
    for size in (shots * classes, queries * classes):
        labels = rng.permutation(np.tile(np.arange(classes), size // classes))
        arrays.append(np.stack([np.tile([next(reds), 0, 0], 60 * 60) for _ in labels]))
        arrays.append(np.eye(classes)[labels])
    return Episodes(*arrays)


def test_an_episodes_picture_has_the_support_set_above_the_query_set_a_column_a_class():
    """Of every image, its place is found by its red and compared with its label."""
    task, outputs = episode(2, 3, 4), np.random.default_rng(1).random([12, 4])
    picture = draw_episode(*episode_rows(task, outputs, channels=3))
    places = {}
    for split, inputs, labels in (("a", task.inputa, task.labela), ("b", task.inputb, task.labelb)):
        for image, label in zip(inputs, labels, strict=True):
            rows, columns = np.nonzero((picture == np.round(255 * image[:3])).all(2))
            assert len(rows) >= 50 * 50  # nothing covers it
            places.setdefault(split, []).append((rows.max(), columns.max(), label.argmax()))
    assert max(row for row, _, _ in places["a"]) < min(row for row, _, _ in places["b"])
    assert len({row for row, _, _ in places["a"]}) == 2
    assert len({row for row, _, _ in places["b"]}) == 3
    everything = sorted((column, label) for _, column, label in places["a"] + places["b"])
    assert [label for _, label in everything] == sorted(label for _, label in everything)
    assert len({column for column, _ in everything}) == 4


def test_an_episodes_captions_tell_the_class_and_the_prediction():
    task = episode(1, 2, 3)
    truths = task.labelb.argmax(1)
    predicted = (truths + np.array([0, 1, 0, 0, 1, 0])) % 3
    support, query = episode_rows(task, np.eye(3)[predicted], channels=3)
    assert [[tile.caption for tile in row] for row in support] == [["0", "1", "2"]]
    captions = [tile.caption for row in query for tile in row]
    expected = [f"{truth} as {said}" for truth, said in zip(truths, predicted, strict=True)]
    assert sorted(captions) == sorted(expected)
    for tile in (tile for row in query for tile in row):
        truth, said = tile.caption.split(" as ")
        assert (tile.color == episode_image.RIGHT) == (truth == said)


def test_an_episodes_picture_is_bounded():
    task = episode(4, 5, 25)
    support, query = episode_rows(task, task.labelb, channels=3)
    assert (len(support), len(query)) == (episode_image.MOST_SUPPORT_ROWS, episode_image.MOST_QUERY_ROWS)
    assert {len(row) for row in support + query} == {episode_image.MOST_CLASSES}
    height, width, _ = draw_episode(support, query).shape
    assert height <= 900
    assert width <= 1800


@pytest.mark.parametrize(
    ("rates", "tags"),
    [
        ("step", {"alpha/w1/step 1", "alpha/b2/step 2", "meta_lr"}),
        ("weight", {"alpha/w1/mean", "alpha/w1/below 0", "meta_lr"}),
        ("none", {"meta_lr"}),
    ],
)
def test_learned_rates_and_schedules_are_curves(tmp_path, rates, tags):
    flags = FLAGS | {"learn_rates": rates, "num_updates": 2, "total_epochs": 2, "total_iter_per_epoch": 2}
    config = Config.from_flags(flags | {"metatrain_iterations": 4, "val_tasks": 0})
    write_class_folders(tmp_path / "photos", {"train": 4}, 10, size=8, channels=1)
    data = DataGenerator(config.replace(data_dir=str(tmp_path / "photos")), ("train",))
    model = MAML(config, Interpreted("fc", 8 * 8, 3, (8,), "None"))
    trained = training.train(config, model, data, tmp_path)
    found = events(tmp_path / "train")
    shown = {tag for tag in found.Tags()["tensors"] if tag.startswith(("alpha/", "meta_lr"))}
    [*charted] = model.charts(trained.state.weights, 0)
    assert set(charted) == shown and (rates == "none" or charted[0].startswith("alpha/w1/"))
    assert tags <= shown and len(shown) == {"step": 9, "weight": 9, "none": 1}[rates]
    curve = [(event.step, tf.make_ndarray(event.tensor_proto).item()) for event in found.Tensors("meta_lr")]
    np.testing.assert_allclose(curve, [(0, 1e-3), (1, 1e-3), (2, 5.05e-4), (3, 5.05e-4), (4, 1e-5)], rtol=1e-5)
    if rates == "step":
        last = tf.make_ndarray(found.Tensors("alpha/w1/step 2")[-1].tensor_proto)
        assert last == trained.state.weights["alpha/w1"][1].numpy() != config.update_lr


def test_the_custom_charts_begin_with_what_training_minimizes_and_find_the_curves(runs):
    folder, _ = runs["default"]
    [config] = events(folder).Tensors("custom_scalars__config__")
    layout = Layout.FromString(config.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["What to look at first", "After every step"]
    assert [chart.title for chart in layout.category[0].chart] == ["loss", "accuracy"]
    tags = events(folder / "train").Tags()["tensors"]
    for category in layout.category:
        for chart in category.chart:
            assert all(any(re.match(pattern, tag) for tag in tags) for pattern in chart.multiline.tag)


def test_learned_rates_of_a_weight_share_a_chart(tmp_path):
    writer = SummaryWriter(tmp_path, enabled=True)
    writer.layout(["loss"], ["alpha/w1/step 1", "alpha/w1/step 2", "alpha/b1/step 1", "meta_lr"])
    writer.close()
    [config] = events(tmp_path).Tensors("custom_scalars__config__")
    charts = Layout.FromString(config.tensor_proto.string_val[0]).category[2].chart
    assert [chart.title for chart in charts] == ["alpha/w1", "alpha/b1", "meta_lr"], "in the order of the layers"
    assert re.match(charts[0].multiline.tag[0], "alpha/w1/step 2") and re.match(charts[2].multiline.tag[0], "meta_lr")
    assert not re.match(charts[0].multiline.tag[0], "alpha/w11/step 1")
