"""Random changes of training images: what they are, when they happen, and that prediction sees what training saw."""

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.maml import MAML
from maml.tasks import augmentation
from maml.tasks.split import ImageSplit
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

SIDE, CLASSES, PER_CLASS = 6, 4, 4
FLAGS = {"datasource": "folder", "data_dir": "x", "image_size": SIDE, "num_classes": 3, "update_batch_size": 1}


def split() -> ImageSplit:
    images = np.random.default_rng(0).integers(1, 256, [CLASSES * PER_CLASS, SIDE, SIDE, 3]).astype(np.uint8)
    names = tuple(f"class {i}" for i in range(CLASSES))
    return ImageSplit(images.reshape(len(images), -1), np.full(CLASSES, PER_CLASS), names)


def generator(**flags) -> DataGenerator:
    return DataGenerator(Config.from_flags(FLAGS | flags), load=lambda *args, **kwargs: split())


def drawn(data: DataGenerator, part: str) -> np.ndarray:
    episodes = [data.episodes(part, index, 4) for index in range(8)]
    flat = np.concatenate([np.concatenate([e.inputa, e.inputb], 1).reshape(-1, SIDE * SIDE * 3) for e in episodes])
    return np.rint(flat * 255).astype(np.uint8).reshape(-1, SIDE, SIDE, 3)


def shifted(image: np.ndarray, rows: int, columns: int, margin: int) -> np.ndarray:
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    return padded[rows : rows + SIDE, columns : columns + SIDE]


VARIANTS = {
    "flip": ({"flip": True}, lambda image: [image, image[:, ::-1]]),
    "crop": ({"crop": 1}, lambda image: [shifted(image, r, c, 1) for r in range(3) for c in range(3)]),
    "rotate_classes": ({"rotate_classes": True}, lambda image: [np.rot90(image, k) for k in range(4)]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_training_images_are_changed_in_every_way_and_no_other(name):
    flags, variants = VARIANTS[name]
    known = {
        variant.tobytes(): (number, kind)
        for number, image in enumerate(split().images.reshape(-1, SIDE, SIDE, 3))
        for kind, variant in enumerate(variants(image))
    }
    kinds = {known[image.tobytes()][1] for image in drawn(generator(**flags), "train")}
    assert kinds == set(range(len(variants(np.zeros([SIDE, SIDE, 3])))))


@pytest.mark.parametrize("name", VARIANTS)
def test_test_images_are_not_changed_and_the_draws_stay(name):
    np.testing.assert_array_equal(drawn(generator(**VARIANTS[name][0]), "test"), drawn(generator(), "test"))


def test_a_class_is_rotated_as_one():
    images = split().images.reshape(-1, SIDE, SIDE, 3)
    turned = {np.rot90(image, k).tobytes(): (n // PER_CLASS, k) for n, image in enumerate(images) for k in range(4)}
    episodes = generator(rotate_classes=True).episodes("train", 0, 20)
    for task in episodes.tasks():
        flat = np.rint(np.concatenate([task.inputa, task.inputb]) * 255).astype(np.uint8)
        found = {turned[row.tobytes()] for row in flat}
        assert len(found) == 3, "three classes, each in one direction"


def test_both_changes_at_once_and_a_margin_that_is_left_out():
    images = tf.constant(split().images.reshape(-1, SIDE, SIDE, 3))
    same = augmentation.cropped(images, tf.fill([len(images), 2], 2), 2)
    np.testing.assert_array_equal(same, images)
    twice = augmentation.mirrored(augmentation.mirrored(images, tf.fill([16], True)), tf.fill([16], True))
    np.testing.assert_array_equal(twice, images)


def test_auto_normalization_is_that_of_the_training_images():
    data = generator(normalize="auto")
    mean, deviation = data.config.normalization
    pixels = split().images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(deviation, pixels.std(0), atol=1e-4)
    normalized, plain = (MAML(config).model for config in (data.config, data.config.replace(normalize="")))
    weights, inputs = plain.init(0), tf.constant(pixels.reshape(len(pixels) // 36, -1), tf.float32)
    by_hand = ((pixels - mean) / deviation).reshape(len(pixels) // 36, -1).astype(np.float32)
    np.testing.assert_allclose(normalized.apply(weights, inputs), plain.apply(weights, by_hand), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="read from the data"):
        MAML(Config.from_flags(FLAGS | {"normalize": "auto"}))


@pytest.mark.parametrize("value", ["0.5", "0.5/0", "a/b", "0.5,0.5,0.5/1,1,0", "auto/auto"])
def test_a_normalization_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"must be auto, or 3 means and deviations above 0, such as 0.5,0.5,0.5/0.5"):
        Config.from_flags(FLAGS | {"normalize": value})


@pytest.mark.parametrize("flag", ["flip", "crop", "rotate_classes", "normalize"])
def test_a_sinusoid_has_no_images(flag):
    with pytest.raises(UserError, match="is for images"):
        Config.from_flags({flag: {"crop": 1, "normalize": "auto"}.get(flag, True)})


def test_a_run_keeps_its_normalization_and_so_does_its_export(tmp_path, monkeypatch, eagerly):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"train": 4, "val": 3, "test": 3}, 4, size=16)
    flags = ("--datasource=folder", "--data_dir=photos", "--num_classes=3", "--update_batch_size=1", "--num_filters=2")
    flags += ("--normalize=auto", "--flip", "--crop=2", "--rotate_classes", "--val_tasks=0", "--query_size=1")
    flags += ("--num_updates=1", "--test_num_updates=1")
    for iterations in (1, 2):  # the second goes on
        assert run_here(*flags, f"--metatrain_iterations={iterations}", "--meta_batch_size=1") == 0
    learner = maml.load("logs/folder", bn_mode="support")
    assert learner.config.normalization and learner.config.flip
    learner.export("exported", num_updates=1)
    rng = np.random.default_rng(0)
    support, query = rng.random((3, 16, 16, 3), np.float32), rng.random((2, 16, 16, 3), np.float32)
    expected = learner.adapt(support, [0, 1, 2], num_updates=1).predict_proba(query)
    exported = tf.saved_model.load("exported").signatures["serving_default"]
    found = exported(
        support_images=tf.constant(support), support_labels=tf.constant([0, 1, 2], tf.int64), query_images=query
    )
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
