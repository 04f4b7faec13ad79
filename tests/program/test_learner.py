"""Adapting to a user's own examples, predicting, and exporting: `maml.load`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError
from maml.learner import Learner
from maml.maml import MAML
from tests.command_line import ROOT, run_here
from tests.tiny import adapt_all, tiny_weights

NETWORKS = {"strided": {}, "pooled": {"max_pool": True}, "fully connected": {"conv": False}}
BN_MODES = ("transductive", "support")
WAYS = 3

per_network = pytest.mark.parametrize("network", list(NETWORKS))
per_bn_mode = pytest.mark.parametrize("bn_mode", BN_MODES)


def learner_of(network: str = "strided", **flags) -> Learner:
    """A 3-way 1-shot learner of 28×28 images with 4 filters and weights like trained ones."""
    given = {"datasource": "omniglot", "num_classes": WAYS, "num_filters": 4, "update_batch_size": 1, "update_lr": 0.05}
    config = Config.from_flags(given | {"train": False, "test_num_updates": 2} | NETWORKS[network] | flags)
    model = MAML(config)
    return Learner(config, model, tiny_weights(model, 3), Path("model7"))


def sinusoid(**flags) -> Learner:
    config = Config.from_flags({"train": False, "norm": "None", "update_lr": 0.05, "test_num_updates": 3} | flags)
    model = MAML(config)
    return Learner(config, model, tiny_weights(model, 3), Path("model7"))


def images(number: int, seed: int = 0) -> np.ndarray:
    """[number, 28, 28] uint8: coarse patterns, so that the classes differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 4, 4), np.uint8)
    return np.kron(coarse, np.ones((7, 7), np.uint8))


@per_bn_mode
@per_network
def test_predictions_are_those_of_a_meta_test(network, bn_mode):
    """The same numbers as the query outputs of `task_metalearn`, from which a test's accuracies come."""
    learner = learner_of(network, bn_mode=bn_mode)
    support, query = images(WAYS), images(4, seed=1)
    inputa, inputb = (tf.constant(array.reshape(1, len(array), -1) / 255, tf.float32) for array in (support, query))
    labels = tf.eye(WAYS)[None]
    episodes = Episodes(inputa, labels, inputb, tf.one_hot([[0, 1, 2, 0]], WAYS))
    outputs = adapt_all(learner.model, learner.weights, episodes, 2).outputbs[-1][0]
    adapted = learner.adapt(support, ["a", "b", "c"])
    np.testing.assert_allclose(adapted.predict_proba(query), tf.nn.softmax(outputs), atol=1e-6)
    assert adapted.predict(query) == ["abc"[column] for column in np.argmax(outputs, 1)]


@per_network
def test_companions_change_transductive_predictions_only(network):
    """Batch-norm by the query batch ties its predictions together; by the support set it does not."""
    support, query, other = images(WAYS), images(4, seed=1), images(4, seed=2)
    together, among_others = {}, {}
    for bn_mode in BN_MODES:
        adapted = learner_of(network, bn_mode=bn_mode).adapt(support, range(WAYS))
        together[bn_mode] = adapted.predict_proba(query)[0]
        among_others[bn_mode] = adapted.predict_proba(np.concatenate([query[:1], other]))[0]
    np.testing.assert_allclose(among_others["support"], together["support"], atol=1e-6)
    assert abs(among_others["transductive"] - together["transductive"]).max() > 0.01


def test_one_image_alone_is_nothing_but_the_shift_when_transductive():
    """A fully connected net standardizes a single image to zero, whatever it shows; not so by the support set."""
    first, second = images(1, seed=1), images(1, seed=2)
    for bn_mode, same in (("transductive", True), ("support", False)):
        adapted = learner_of("fully connected", bn_mode=bn_mode).adapt(images(WAYS), range(WAYS))
        assert np.allclose(adapted.predict_proba(first), adapted.predict_proba(second), atol=1e-6) is same


@per_network
def test_support_statistics_of_the_support_set_itself(network):
    """Asked about its own support set, a learner says the same in both modes."""
    support = images(WAYS)
    by_query, by_support = (learner_of(network, bn_mode=mode).adapt(support, range(WAYS)) for mode in BN_MODES)
    np.testing.assert_allclose(by_support.predict_proba(support), by_query.predict_proba(support), atol=1e-5)


def test_independent_predictions_in_parts(monkeypatch):
    adapted = learner_of(bn_mode="support").adapt(images(WAYS), range(WAYS))
    whole = adapted.predict_proba(images(5, seed=1))
    monkeypatch.setattr("maml.learner.PART", 2)
    np.testing.assert_allclose(adapted.predict_proba(images(5, seed=1)), whole, atol=1e-6)


def test_the_number_of_shots_does_not_change_the_step():
    """The loss is N times its mean: every image twice is the same support set, with half the weight each."""
    support, query = images(WAYS), images(4, seed=1)
    learner = learner_of()
    once = learner.adapt(support, "abc").predict_proba(query)
    twice = learner.adapt(np.concatenate([support, support]), "abcabc").predict_proba(query)
    np.testing.assert_allclose(twice, once, atol=1e-5)


def test_unequal_numbers_of_images_a_class():
    """Without a norm the gradient is a plain sum: three images of a class pull three times as much as one."""
    learner = learner_of("fully connected", norm="None")
    inputs, labels = images(5), "abcaa"
    adapted = learner.adapt(inputs, labels, num_updates=1)
    flat = tf.constant(inputs.reshape(5, -1) / 255, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(learner.weights["w5"])
        losses = tf.nn.softmax_cross_entropy_with_logits(
            tf.one_hot([0, 1, 2, 0, 0], WAYS), learner.model.model.apply(learner.weights, flat)
        )
        mean = tf.reduce_mean(losses)
    step = learner.config.update_lr * WAYS * tape.gradient(mean, learner.weights["w5"])
    np.testing.assert_allclose(adapted.state["w5"], learner.weights["w5"] - step, atol=1e-6)


def test_forms_of_images_and_labels():
    """Bytes or floats, with or without a channel axis; any hashable label, given back as it came."""
    learner, support, query = learner_of(), images(WAYS), images(4, seed=1)
    expected = learner.adapt(support, ["x", "y", "z"]).predict_proba(query)
    np.testing.assert_array_equal(learner.adapt(support, tf.range(3), np.int64(2)).predict_proba(query), expected)
    same = learner.adapt((support / 255)[..., None], np.array([7, 5, 9]))
    np.testing.assert_allclose(same.predict_proba(np.float32(query[..., None]) / 255), expected, atol=1e-6)
    assert same.classes == (7, 5, 9)
    assert all(type(label) is int for label in same.predict(query))
    assert learner.adapt(support, [("a", 1), None, "c"]).classes == (("a", 1), None, "c")


def test_other_numbers_of_images_compile_nothing_anew(caplog):
    """Else TensorFlow warns of retracing, and every call takes a second."""
    config = Config.from_flags({"datasource": "miniimagenet", "num_classes": 2, "num_filters": 2, "train": False})
    learner = Learner(config, MAML(config), MAML(config).init_state().weights, Path("x"))
    images, rng = config.image_shape, np.random.default_rng(0)
    for number in range(2, 14):
        support = rng.random((number, images[0], images[0], images[1]), np.float32)
        adapted = learner.adapt(support, [index % 2 for index in range(number)], num_updates=1)
        adapted.predict(support[: number // 2 + 1])
    assert "retracing" not in caplog.text


def test_steps():
    """None is as many as a test makes; zero leaves what was meta-learned."""
    learner, support, query = learner_of(), images(WAYS), images(4, seed=1)
    predictions = [learner.adapt(support, "abc", steps).predict_proba(query) for steps in (None, 2, 0)]
    np.testing.assert_array_equal(predictions[0], predictions[1])
    plain = learner.model.model.apply(learner.weights, tf.constant(query.reshape(4, -1) / 255, tf.float32))
    np.testing.assert_allclose(predictions[2], tf.nn.softmax(plain), atol=1e-6)


GOOD = (images(WAYS), "abc")


@pytest.mark.parametrize(
    ("support", "labels", "said"),
    [
        (np.zeros([3, 20, 20], np.uint8), "abc", "support_images: shape [3, 20, 20], needed [n, 28, 28, 1] or"),
        (np.zeros([3, 28, 28, 3], np.uint8), "abc", "shape [3, 28, 28, 3]"),
        (images(1)[0], "a", "shape [28, 28]"),
        (np.zeros([0, 28, 28], np.uint8), "", "n of 1 or more"),
        (images(3).astype(int), "abc", "int64, needed uint8"),
        (images(3).astype(float), "abc", "needed 0 to 1"),
        (np.full([3, 28, 28], np.nan), "abc", "needed 0 to 1"),
        (images(3), "aba", "2 different labels, and this run learned 3-way tasks"),
        (images(3), "ab", "2 labels for 3 images"),
        (images(3), np.eye(3), "not one-hot"),
    ],
)
def test_bad_support_sets_are_refused(support, labels, said):
    with pytest.raises(UserError) as error:
        learner_of().adapt(support, labels)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_other_bad_calls_are_refused():
    learner = learner_of()
    adapted = learner.adapt(*GOOD)
    for call, said in (
        (lambda: learner.adapt(*GOOD, num_updates=-1), "num_updates=-1"),
        (lambda: adapted.predict(images(2)[:, :5]), "images: shape [2, 5, 28]"),
        (lambda: learner.adapt(*GOOD, num_updates="1"), "num_updates='1'"),
        (lambda: learner.read_images([]), "no image files"),
        (lambda: learner.read_images("a.png"), "a.png: one path, needed a list"),
        (lambda: sinusoid().adapt(np.zeros([4]), np.zeros([4, 1])), "shape [4], needed [n, 1]"),
        (lambda: sinusoid().adapt(np.zeros([4, 1]), np.zeros([4])), "shape [4], needed [4, 1]"),
        (lambda: sinusoid().adapt(np.full([4, 1], np.inf), np.zeros([4, 1])), "finite"),
        (lambda: sinusoid().adapt(np.zeros([4, 1]), np.zeros([4, 1])).predict_proba(np.zeros([1, 1])), "use predict"),
        (lambda: sinusoid().read_images(["a.png"]), "takes numbers"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert said in str(error.value)


def test_sinusoids():
    """Values of the adapted network at new points, as in a meta-test."""
    learner = sinusoid()
    rng = np.random.default_rng(0)
    x, y, new = (rng.uniform(-1, 1, [n, 1]).astype(np.float32) for n in (6, 6, 4))
    episodes = Episodes(*(tf.constant(array[None]) for array in (x, y, new, new)))
    outputs = adapt_all(learner.model, learner.weights, episodes, 3).outputbs[-1][0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(new), outputs, atol=1e-6)


def test_load(tmp_path, monkeypatch):
    """By a folder of runs or a run's own; flags choose the checkpoint; what is wrong is said."""
    monkeypatch.chdir(tmp_path)
    flags = ("--norm=None", "--metatrain_iterations=20", "--save_interval=10", "--val_tasks=0", "--nolog")
    assert run_here(*flags) == 0
    learner = maml.load("logs")
    assert learner.checkpoint.name == "model20"
    assert maml.load(learner.checkpoint.parent, test_iter=10).checkpoint.name == "model10"
    assert maml.load(update_lr=0.5).config.update_lr == 0.5
    x = np.linspace(-1, 1, 5)[:, None]
    assert learner.adapt(x, np.sin(x)).predict(x).shape == (5, 1)
    for given, said in (
        ({"test_iter": 11}, "no checkpoint of iteration 11; there are: 10, 20"),
        ({"step": 3}, "no flag step"),
        ({"test_iter": "11"}, "--test_iter='11': must be a whole number"),
        ({"logdir": "nowhere"}, "no run under nowhere"),
        ({"bn_mode": "support"}, "--norm=None"),
    ):
        with pytest.raises(UserError) as error:
            maml.load(**given)
        assert said in str(error.value)


def test_importing_the_package_does_not_import_tensorflow():
    code = "import maml, sys; assert 'tensorflow' not in sys.modules; assert maml.UserError; maml.nothing"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "has no attribute 'nothing'" in ran.stderr


@pytest.mark.parametrize(("network", "bn_mode"), [("strided", "support"), ("pooled", "transductive")])
def test_export_predicts_the_same_for_any_sizes(tmp_path, network, bn_mode):
    learner = learner_of(network, bn_mode=bn_mode)
    learner.export(tmp_path / "exported")
    predict = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    for shots, queries in ((1, 4), (2, 7)):
        support, query = images(WAYS * shots), images(queries, seed=1)
        labels = np.arange(WAYS * shots) % WAYS
        expected = learner.adapt(support, labels).predict_proba(query)
        floats = [tf.constant(array[..., None] / 255, tf.float32) for array in (support, query)]
        found = predict(support_images=floats[0], support_labels=tf.constant(labels), query_images=floats[1])
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    about = json.loads((tmp_path / "exported/export.json").read_text())
    assert (about["checkpoint"], about["num_updates"], about["config"]["bn_mode"]) == ("model7", 2, bn_mode)


def test_an_export_works_without_this_package(tmp_path):
    """In a process that cannot import it, with the sinusoid's numbers."""
    learner = sinusoid()
    x, y, new = np.split(np.random.default_rng(0).uniform(-1, 1, [12, 1]).astype(np.float32), 3)
    np.savez(tmp_path / "data.npz", x=x, y=y, new=new)
    learner.export(tmp_path / "exported")
    code = """
import numpy as np, tensorflow as tf
try: import maml
except ModuleNotFoundError: pass
else: raise SystemExit("maml can be imported")
data = np.load("data.npz")
predict = tf.saved_model.load("exported").signatures["serving_default"]
x, y, new = (tf.constant(data[name]) for name in ("x", "y", "new"))
np.save("values.npy", predict(support_inputs=x, support_labels=y, query_inputs=new)["values"])
"""
    ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), learner.adapt(x, y).predict(new), atol=1e-6)


def test_an_export_replaces_nothing(tmp_path):
    (tmp_path / "kept").touch()
    for folder in (tmp_path, tmp_path / "kept"):
        with pytest.raises(UserError, match="choose another --export_dir"):
            sinusoid().export(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(_, folder, **options):
        Path(folder).mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UserError, match=r"could not be written .No space left on device.; free some space"):
        sinusoid().export(tmp_path / "exported")
    assert not any(tmp_path.iterdir())
