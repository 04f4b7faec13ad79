"""Episodes: distributions, disjoint support and query sets, and independence of everything but (seed, split, index)."""

import numpy as np
import pytest
import tensorflow as tf

from maml import data_generator
from maml.config import Config
from maml.data_generator import DataGenerator, Episodes
from maml.errors import UserError
from maml.tasks.split import ImageSplit

SIDE = 28
CLASSES, PER_CLASS = 12, 6


def image_number(images: np.ndarray) -> np.ndarray:
    """Which image of `marked_split` each row is, from the values of its pixels, however it was turned."""
    return np.rint(images.sum(-1) * 255).astype(int) - 1


def marked_split(per_class: list[int]) -> ImageSplit:
    """Images whose pixels sum to their row number + 1, most of it in a corner, the rest at its right neighbor."""
    total = sum(per_class)
    images = np.zeros([total, SIDE * SIDE], np.uint8)
    images[:, 0] = (np.arange(total) + 1) // 2 + (np.arange(total) + 1) % 2
    images[:, 1] = (np.arange(total) + 1) // 2
    return ImageSplit(images, np.array(per_class), tuple(f"class {i}" for i in range(len(per_class))))


@pytest.fixture(scope="module")
def marked() -> ImageSplit:
    """Twelve classes, one a little smaller and one larger than the others."""
    counts = [PER_CLASS] * CLASSES
    counts[3], counts[7] = PER_CLASS - 1, PER_CLASS + 4
    return marked_split(counts)


def generator(split: ImageSplit, **flags) -> DataGenerator:
    """Episodes of `split`, whatever the data source."""
    return DataGenerator(Config.from_flags(flags), load=lambda *args, **kwargs: split)


def omniglot(split: ImageSplit, **flags) -> DataGenerator:
    return generator(split, **{"datasource": "omniglot", "update_batch_size": 2, "num_classes": 4} | flags)


def numpy(episodes: Episodes) -> Episodes:
    return Episodes(*(tensor.numpy() for tensor in episodes))


def test_shapes(marked):
    episodes = omniglot(marked, query_size=3).episodes("train", 0, 6)
    assert episodes.inputa.shape == (6, 8, SIDE * SIDE)
    assert episodes.labela.shape == (6, 8, 4)
    assert episodes.inputb.shape == (6, 12, SIDE * SIDE)
    assert episodes.labelb.shape == (6, 12, 4)
    assert {tensor.dtype for tensor in episodes} == {tf.float32}


def test_labels_follow_the_shuffle_and_no_image_comes_twice(marked):
    """Within a task a label belongs to one class, a class to one label, and no image is seen twice."""
    class_of = np.repeat(np.arange(CLASSES), marked.counts)
    data = omniglot(marked, query_size=3)
    for index in range(20):
        episodes = numpy(data.episodes("train", index, 4))
        for task in range(4):
            images = image_number(np.concatenate([episodes.inputa[task], episodes.inputb[task]]))
            labels = np.concatenate([episodes.labela[task], episodes.labelb[task]]).argmax(-1)
            assert len(set(images)) == len(images)
            pairs = set(zip(labels, class_of[images], strict=True))
            assert len(pairs) == len({label for label, _ in pairs}) == len({c for _, c in pairs}) == 4


def test_rows_are_groups_of_one_example_a_class_each_in_its_own_order(marked):
    episodes = numpy(omniglot(marked, query_size=3).episodes("train", 0, 30))
    labels = np.concatenate([episodes.labela, episodes.labelb], 1).argmax(-1).reshape(30, 5, 4)
    assert (np.sort(labels, -1) == np.arange(4)).all()
    orders = {tuple(group) for task in labels for group in task}
    assert len(orders) == 24  # all permutations turn up among 150 groups
    assert any(tuple(task[0]) != tuple(task[1]) for task in labels)


def test_every_class_image_and_label_is_drawn_about_equally_often(marked):
    data = omniglot(marked, query_size=1)
    batches = [numpy(data.episodes("train", index, 25)) for index in range(40)]
    images = np.concatenate([image_number(np.concatenate([b.inputa, b.inputb], 1)).ravel() for b in batches])
    class_of = np.repeat(np.arange(CLASSES), marked.counts)
    by_class = np.bincount(class_of[images], minlength=CLASSES) / len(images)
    np.testing.assert_allclose(by_class, 1 / CLASSES, rtol=0.12)
    by_image = np.bincount(images, minlength=len(class_of)) / len(images)
    expected = 1 / CLASSES / marked.counts[class_of]
    np.testing.assert_allclose(by_image, expected, rtol=0.35)


def test_a_class_is_turned_as_one_and_all_four_ways(marked):
    """All images of a class in a task, support and query, are turned alike; classes differ."""
    data = omniglot(marked, query_size=3)
    corners = [0, SIDE - 1, SIDE * SIDE - 1, SIDE * (SIDE - 1)]
    seen, mixed = set(), False
    for split in data_generator.SPLITS:
        episodes = numpy(data.episodes(split, 0, 20))
        images = np.concatenate([episodes.inputa, episodes.inputb], 1)
        labels = np.concatenate([episodes.labela, episodes.labelb], 1).argmax(-1)
        turns = images[..., corners].argmax(-1)
        for task in range(20):
            by_label = [set(turns[task][labels[task] == label]) for label in range(4)]
            assert all(len(turn) == 1 for turn in by_label)
            mixed |= len(set.union(*by_label)) > 1
            seen |= {(split, turn) for turn in turns[task]}
    assert mixed
    assert seen == {(split, turn) for split in data_generator.SPLITS for turn in range(4)}


def test_a_quarter_turn_is_a_rotation_and_no_reflection():
    image = np.arange(25, dtype=np.uint8)
    turned = data_generator._as_inputs(tf.tile(image[None], [4, 1]), tf.range(4)).numpy() * 255
    for quarter in range(4):
        np.testing.assert_allclose(turned[quarter].reshape(5, 5), np.rot90(image.reshape(5, 5), quarter), rtol=1e-6)


def test_miniimagenet_is_not_turned(marked):
    data = generator(marked, datasource="miniimagenet", update_batch_size=1, query_size=2)
    images = data.episodes("train", 0, 10).inputa.numpy()
    assert (images[..., 2:] == 0).all()


@pytest.mark.parametrize("flags", [{}, {"datasource": "omniglot", "update_batch_size": 1}])
def test_an_episode_is_a_function_of_seed_split_and_index(marked, flags):
    data, again = (generator(marked, **flags) for _ in range(2))
    first = numpy(data.episodes("train", 7, 3))
    for tensor, same in zip(first, numpy(again.episodes("train", 7, 3)), strict=True):
        np.testing.assert_array_equal(tensor, same)
    other_seed = generator(marked, **flags, seed=1)
    for other in (data.episodes("train", 8, 3), data.episodes("val", 7, 3), other_seed.episodes("train", 7, 3)):
        assert not np.array_equal(first.inputa, other.inputa)


@pytest.mark.parametrize("flags", [{}, {"datasource": "omniglot", "update_batch_size": 1}])
def test_eager_graph_and_compiled_sampling_agree(marked, flags):
    data = generator(marked, **flags)
    eager = data.episodes("train", 3, 4)
    for jit_compile in (False, True):
        sample = tf.function(lambda index: data.episodes("train", index, 4), jit_compile=jit_compile)
        for tensor, same in zip(eager, sample(tf.constant(3)), strict=True):
            np.testing.assert_allclose(tensor, same, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [[1], [25, 1], [3, 4, 2], [500]])
def test_random_bits_are_those_of_single_numbers(shape, compiled):
    """Making them in pairs is no other draw: results of earlier versions can be repeated."""
    key = tf.constant([5, 7])
    drawn = tf.function(data_generator._random_bits, jit_compile=compiled, autograph=False)(key, shape, 24)
    single = tf.random.stateless_uniform(shape, key, None, None, tf.int32, alg="philox").numpy()
    np.testing.assert_array_equal(drawn, single.view(np.uint32) >> 8)


def test_sinusoid_has_the_official_ranges():
    data = DataGenerator(Config.from_flags({"baseline": "oracle", "update_batch_size": 10}))
    episodes = numpy(data.episodes("train", 0, 4000))
    x, amplitude, phase = np.moveaxis(np.concatenate([episodes.inputa, episodes.inputb], 1), -1, 0)
    y = np.concatenate([episodes.labela, episodes.labelb], 1)[..., 0]
    np.testing.assert_allclose(y, amplitude * np.sin(x - phase), atol=1e-5)
    for values, low, high in ((x, -5, 5), (amplitude, 0.1, 5), (phase, 0, np.pi)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03 * (high - low))
    assert (amplitude == amplitude[:, :1]).all()
    assert (phase == phase[:, :1]).all()
    assert abs(np.corrcoef(amplitude[:, 0], phase[:, 0])[0, 1]) < 0.06


def test_without_the_oracle_the_input_is_x_alone():
    episodes = DataGenerator(Config.from_flags({"update_batch_size": 10})).episodes("train", 0, 2)
    assert episodes.inputa.shape == (2, 10, 1)


def test_a_split_that_is_none_or_was_not_loaded_is_refused(marked):
    config = Config.from_flags({"datasource": "omniglot", "update_batch_size": 2, "num_classes": 4})
    data = DataGenerator(config, ("train", "val"), load=lambda *args, **kwargs: marked)
    for split in ("test", "validation"):
        with pytest.raises(UserError, match=f"split='{split}': must be one of train, val"):
            data.episodes(split, 0, 1)
    with pytest.raises(UserError, match="must be one of train, val, test"):
        DataGenerator(Config.from_flags({})).episodes("validation", 0, 1)


def test_too_few_classes_or_images_are_refused(marked):
    from maml.errors import UserError

    with pytest.raises(UserError, match="num_classes=13"):
        omniglot(marked, num_classes=13)
    with pytest.raises(UserError, match=r"needs.*--query_size=\d+ would do"):
        omniglot(marked, query_size=40)


def test_a_class_with_too_few_images_is_never_drawn(marked):
    data = omniglot(marked, query_size=PER_CLASS - 2)
    assert data.left_out == {split: ["class 3"] for split in ("train", "val", "test")}
    class_of = np.repeat(np.arange(CLASSES), marked.counts)
    episodes = numpy(data.episodes("train", 0, 40))
    assert set(class_of[image_number(episodes.inputa)].ravel()) == set(range(CLASSES)) - {3}
