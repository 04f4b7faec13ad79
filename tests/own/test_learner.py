"""A trained model of one's own adapts, predicts, is tested and exported."""

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.errors import UserError
from maml.training.checkpoints import best_last
from tests.command_line import run_here
from tests.own.fixtures import TINY, blobs, line, small


def test_structures_are_not_exported_and_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def task(rng):
        x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 1))
        return {"a": x[:2], "b": x[:2]}, y[:2], {"a": x[2:], "b": x[2:]}, y[2:]

    weights = {"w": np.ones((2, 1))}
    learner = maml.train((weights, lambda w, x: (x["a"] + x["b"]) @ w["w"]), task, **TINY)
    with pytest.raises(UserError, match="structures of arrays, which a SavedModel's signature does not take"):
        learner.export("exported")
    assert not (tmp_path / "exported").exists()


def test_what_does_not_fit_a_learner_is_one_line(tmp_path):
    """A y of another shape would be broadcast, and a label that is none would be a row of zeros: numbers, no error."""
    line_learner = maml.train(small(), line, logdir=tmp_path / "line", **TINY)
    blob_learner = maml.train(small(3, 2), blobs, loss="xent", logdir=tmp_path / "blobs", **TINY)
    x, y, *_ = line(np.random.default_rng(1))
    points, labels, *_ = blobs(np.random.default_rng(1))
    adapted = line_learner.adapt(x, y)
    for call, said in (
        (lambda: line_learner.adapt(x, y[:, 0]), r"the shape \[5, 1\], and the labels \[5\]"),
        (lambda: line_learner.adapt(x, y[:-1]), r"the shape \[5, 1\], and the labels \[4, 1\]"),
        (lambda: line_learner.adapt(np.zeros([4, 3]), y[:4]), r"does not take x of the shape \[\[4, 3\]\]"),
        (lambda: line_learner.adapt(x, y, num_updates=-1), "num_updates=-1: must be a whole number"),
        (lambda: line_learner.adapt(x, y, num_updates="2"), "num_updates='2': must be a whole number"),
        (lambda: line_learner.test(line, 0), "count=0: must be a whole number, 1 or more"),
        (lambda: adapted.predict(np.zeros([4, 3])), "does not take x of the shape"),
        (lambda: adapted.predict(None), "x: holds object, needed numbers"),
        (lambda: adapted.predict([[1.0], [2.0]]), "x: holds a single number; make lists an array"),
        (lambda: adapted.predict(np.full([2, 1], np.nan)), "x: holds a nan"),
        (lambda: line_learner.adapt(x[:0], y[:0]), "x: holds no example"),
        (lambda: maml.load(tmp_path / "line", model=small(), loss="foo"), "loss='foo': must be mse"),
        (lambda: blob_learner.adapt(points, labels + 1), "y: labels from 1 to 3, and the model has 3 outputs"),
        (lambda: blob_learner.adapt(points, -labels), "y: labels from -2 to 0"),
        (lambda: blob_learner.adapt(points, labels[:-1]), r"the shape \[9, 3\], and the labels \[8, 3\]"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    run_here("--norm=None", "--metatrain_iterations=1", f"--logdir={tmp_path / 'sine'}")
    with pytest.raises(UserError, match=r"no run of maml\.train in it"):
        maml.load(tmp_path / "sine", model=small())
    assert np.isfinite(line_learner.adapt(x, y, num_updates=np.int64(2)).predict(x)).all()


def test_numbers_of_numpys_types_are_numbers(tmp_path):
    flags = {"metatrain_iterations": np.int64(3), "update_lr": np.float32(0.5), "meta_batch_size": 2.0, "meta_lr": 1}
    learner = maml.train(small(), line, logdir=tmp_path / "a", **flags)
    plain = {"metatrain_iterations": 3, "update_lr": 0.5, "meta_batch_size": 2, "meta_lr": 1.0}
    same = maml.train(small(), line, logdir=tmp_path / "b", **plain)
    assert learner.config.replace(logdir="") == same.config.replace(logdir="")
    assert learner.folder.name == same.folder.name


def test_an_ensemble_averages_what_its_members_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = TINY | {"val_tasks": 4, "val_interval": 5, "keep_best": 3}
    maml.train(small(), line, val=line, logdir="run", **flags)
    x, y, *_ = line(np.random.default_rng(1))
    [folder] = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    best = [checkpoint.iteration for checkpoint in best_last(folder)]
    alone = [maml.load("run", model=small(), test_checkpoint="best", test_iter=iteration) for iteration in best]
    together = maml.load("run", model=small(), test_checkpoint="ensemble")
    outputs = [learner.adapt(x, y).predict(x) for learner in alone]
    assert len(best) == 3 and np.abs(outputs[0] - outputs[1]).max() > 1e-4
    np.testing.assert_allclose(together.adapt(x, y).predict(x), np.mean(outputs, 0), atol=1e-6)
    losses = [learner.test(line, 8).result.mean[-1] for learner in (*alone, together)]
    assert losses[-1] <= np.mean(losses[:-1]) + 1e-6, "a mean squared error is convex"
    together.export("exported")
    loaded = tf.saved_model.load("exported").signatures["serving_default"]
    support_x, support_y = (tf.constant(values, tf.float32) for values in (x, y))
    found = loaded(support_x=support_x, support_y=support_y, query_x=support_x)
    np.testing.assert_allclose(found["outputs"], np.mean(outputs, 0), atol=1e-6)


def test_classification_learns_tests_predicts_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = TINY | {"metatrain_iterations": 150, "update_lr": 0.5}
    learner = maml.train(small(3, 2), blobs, val=blobs, loss="xent", val_interval=50, val_tasks=8, **flags)
    table = learner.test(blobs, 40)
    assert table.measure == "accuracy" and table.result.mean[-1] > 0.7 > table.result.mean[0]
    assert "2 updates, query set" in str(table) and "(40 tasks)" in str(table)
    x, y, query, labels = blobs(np.random.default_rng(3))
    adapted = learner.adapt(x, y, num_updates=5)
    assert (adapted.predict(query) == labels).mean() > 0.7
    np.testing.assert_allclose(adapted.predict_proba(query).sum(-1), 1, rtol=1e-5)
    assert learner.check_gradients(blobs, directions=2).exact
    learner.export("exported")
    exported = tf.saved_model.load("exported").signatures["serving_default"]
    found = exported(
        support_x=tf.constant(x, tf.float32),
        support_y=tf.one_hot(y, 3),
        query_x=tf.constant(query, tf.float32),
    )["outputs"]
    expected = learner.adapt(x, y).predict_proba(query)
    np.testing.assert_allclose(tf.nn.softmax(found), expected, rtol=1e-4, atol=1e-6)


def test_more_steps_than_learned_rates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner = maml.train(small(), line, learn_rates="step", adapt="head", **TINY)
    x, y, *_ = line(np.random.default_rng(0))
    assert np.isfinite(learner.adapt(x, y, num_updates=7).predict(x)).all()
