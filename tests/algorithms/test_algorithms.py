"""What every algorithm promises: the same tests for all of them."""

import re

import numpy as np
import pytest
import tensorflow as tf

from maml import algorithms
from maml.algorithms import NAMES
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.learner import Learner
from maml.training import loop as training
from tests.image_fixtures import write_class_folders

# A toy problem: 16×16 gray images of coarse patterns with noise, 3-way 1-shot, 4 filters.
TOY = {"datasource": "folder", "image_size": 16, "channels": 1, "num_classes": 3, "update_batch_size": 1}
TOY |= {"num_filters": 4, "max_pool": True, "meta_batch_size": 4, "query_size": 2, "metatrain_iterations": 30}
TOY |= {"val_tasks": 20, "val_interval": 15, "summary_interval": 10, "save_interval": 10, "log": False}
OWN = {
    "maml": {"meta_lr": 0.01, "update_lr": 0.1, "num_updates": 1, "test_num_updates": 1},
    "anil": {"meta_lr": 0.02, "update_lr": 1.0, "num_updates": 3, "test_num_updates": 3},
    "metasgd": {"meta_lr": 0.01, "num_updates": 1, "test_num_updates": 1},
    "maml++": {"meta_lr": 0.01, "num_updates": 2, "test_num_updates": 2, "multi_step_loss_num_epochs": 1}
    | {"total_iter_per_epoch": 25, "keep_best": 1},
    "reptile": {"update_lr": 0.01, "train_shots": 4, "inner_batch": 6, "eval_inner_iters": 10, "eval_inner_batch": 3}
    | {"meta_step": 0.5, "meta_step_final": 0.5},  # a shorter run would fall faster
    "protonet": {"meta_lr": 0.01, "train_num_classes": 5},
    "matching": {"meta_lr": 0.01, "attention_scale": 0.0, "fce": True, "unrolling_steps": 2},
}
every_algorithm = pytest.mark.parametrize("algorithm", list(NAMES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images."""
    root = tmp_path_factory.mktemp("toy")
    write_class_folders(root, {"train": 8, "val": 5, "test": 5}, 6, size=16, channels=1)
    return root


def toy(algorithm: str, folder, **flags) -> tuple[Config, DataGenerator]:
    given = TOY | OWN[algorithm] | {"algorithm": algorithm, "data_dir": str(folder)} | flags
    config = Config.from_flags(given)
    return config, DataGenerator(config)


@every_algorithm
def test_it_learns_and_resumes_exactly(algorithm, folder, tmp_path):
    """From what a run has saved at iteration 20 another ends at the same bits; they make fresh tasks easier."""
    config, data = toy(algorithm, folder)
    model = algorithms.build(config)
    compiled = training.Compiled.of(config, model, data)  # traced once: that takes longer than running
    whole = training.train(config, model, data, tmp_path, compiled)
    for path in tmp_path.glob("model30*"):
        path.unlink()
    part = training.train(config, model, data, tmp_path, compiled)
    assert part.iterations == 10
    for first, second in zip(tf.nest.flatten(whole.state), tf.nest.flatten(part.state), strict=True):
        np.testing.assert_array_equal(first, second)
    assert whole.progress.best == part.progress.best
    np.testing.assert_array_equal(whole.progress.pending, part.progress.pending)

    evaluator, column = compiled.evaluator, model.reported[-1]
    before, after = (
        evaluator.tasks(weights, "val", 60, config.evaluation_updates)["accuracy"][:, column].mean()
        for weights in (model.init_state().weights, whole.state.weights)
    )
    assert after > max(0.65, before)  # chance: a third


@every_algorithm
def test_permuted_labels_permute_the_predictions(algorithm, folder):
    """The classes' names carry no information, but for a head that has a row for each of them: MAML, Reptile."""
    config, data = toy(algorithm, folder, train=False)
    model = algorithms.build(config)
    weights = model.init_state().weights
    rows = [name for name in ("w5", "b5", "alpha/w5", "alpha/b5") if name in weights]
    weights |= {name: tf.fill(weights[name].shape, 0.1 if name.startswith("alpha") else 0.0) for name in rows}
    inputa, labela, inputb, _ = data.episodes("test", 0, 2).tasks()[0]
    order = [2, 0, 1]
    plain, permuted = (
        model.predict(model.adapt(weights, inputa, labels, 2), inputa, inputb)
        for labels in (labela, tf.gather(labela, order, axis=1))
    )
    np.testing.assert_allclose(tf.gather(plain, order, axis=1), permuted, rtol=1e-4, atol=1e-5)
    assert np.ptp(plain, axis=1).max() > 1e-3


@every_algorithm
@pytest.mark.parametrize("split", ["train", "test"])
def test_support_and_query_sets_share_no_image(algorithm, folder, split):
    """Every image of a task is another one: the noise differs."""
    config, data = toy(algorithm, folder)
    inputa, labela, inputb, labelb = data.episodes(split, 0, 5)
    classes, shots, queries = config.task_size(split)
    for support, query in zip(inputa, inputb, strict=True):
        images = {tuple(image) for image in np.concatenate([support, query])}
        assert len(images) == classes * (shots + queries)
    np.testing.assert_array_equal(tf.reduce_sum(labela, 1), shots)
    np.testing.assert_array_equal(tf.reduce_sum(labelb, 1), queries)


@every_algorithm
def test_adapt_and_predict_for_a_users_own_images(algorithm, folder):
    """What `maml.load` gives agrees with what a test measures, and reads a support set of any size."""
    config, data = toy(algorithm, folder, train=False)
    model = algorithms.build(config)
    weights = model.init_state().weights
    learner = Learner(config, model, weights, folder)
    [task] = data.episodes("test", 0, 1).tasks()
    support, query = (tf.reshape(inputs, [-1, 16, 16, 1]).numpy() for inputs in (task.inputa, task.inputb))
    labels = np.argmax(task.labela, 1)
    adapted = learner.adapt(support, labels)
    expected = model.predict(
        model.adapt(weights, task.inputa, task.labela, config.evaluation_updates),
        task.inputa,
        task.inputb,
    )
    found = adapted.predict_proba(query)[:, np.argsort(adapted.classes)]
    np.testing.assert_allclose(found, tf.nn.softmax(expected), rtol=1e-3, atol=1e-5)
    more = learner.adapt(np.concatenate([support, support[:1]]), [*labels, labels[0]])
    assert len(more.predict(query)) == len(query)


@pytest.mark.parametrize("algorithm", NAMES)
def test_flags_of_other_algorithms_are_refused(algorithm):
    """At their default, too: a flag that is given is meant."""
    given = {"distance": "l2"} if algorithm in ("maml", "anil", "metasgd", "maml++") else {"num_updates": 1}
    with pytest.raises(UserError, match=rf"has no meaning with --algorithm={re.escape(algorithm)}; it is for "):
        Config.from_flags({"algorithm": algorithm} | given)


def test_the_others_have_folders_of_their_own_and_no_sinusoid():
    names = {Config.from_flags({"algorithm": name, "datasource": "omniglot"}).exp_string for name in NAMES}
    names |= {
        Config.from_flags({"algorithm": "matching"} | flags).exp_string
        for flags in ({"fce": True}, {"distance": "l2"}, {"attention_scale": 0.0}, {"train_num_classes": 20})
    }
    assert len(names) == len(NAMES) + 4
    with pytest.raises(UserError, match="is for images"):
        Config.from_flags({"algorithm": "protonet", "datasource": "sinusoid"})
