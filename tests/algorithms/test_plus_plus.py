"""`--algorithm=maml++`: its defaults, the data and network of its official code, and ensembles of checkpoints."""

import json

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml import algorithms
from maml.algorithms.losses import accuracy, mean_xent
from maml.config import Config
from maml.errors import UserError
from maml.maml import MAML
from maml.models.official import Network
from maml.tasks.omniglot_images import PLUS_PLUS_SPLIT, plus_plus_order
from maml.training import checkpoints
from maml.training.checkpoints import Progress
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders
from tests.tiny import tiny_episodes, tiny_model, tiny_weights


def test_the_published_defaults():
    config = Config.from_flags({"algorithm": "maml++", "num_classes": 20, "update_batch_size": 1})
    assert config.datasource == "omniglot" and (config.num_filters, config.max_pool) == (64, True)
    assert (config.meta_batch_size, config.update_lr, config.num_updates, config.evaluation_updates) == (16, 0.1, 5, 5)
    assert (config.multi_step_loss_num_epochs, config.total_epochs, config.total_iter_per_epoch) == (20, 250, 500)
    assert config.metatrain_iterations == 250 * 500 and config.first_order_to_second_order_epoch == -1
    assert (config.meta_lr, config.min_learning_rate, config.keep_best, config.val_tasks) == (1e-3, 1e-5, 3, 600)
    assert (config.learn_rates, config.per_step_bn, config.query_per_class) == ("step", True, 1)
    config = Config.from_flags({"algorithm": "maml++", "datasource": "miniimagenet"})
    assert (config.num_filters, config.meta_batch_size, config.update_lr) == (32, 4, 0.01)
    assert (config.multi_step_loss_num_epochs, config.query_per_class) == (50, 15)
    assert (
        Config.from_flags({"algorithm": "maml++", "datasource": "miniimagenet"}).replace(train=False).query_per_class
        == 15
    )
    for flags in ({"datasource": "sinusoid", "norm": "None"}, {"norm": "layer_norm"}, {"per_step_bn": False}):
        assert not Config.from_flags({"algorithm": "maml++"} | flags).per_step_bn
    assert Config.from_flags({"algorithm": "maml++"}).exp_string.startswith("maml++.cls_5.mbs_16.ubs_5.numstep5")
    assert "conventions" not in Config.from_flags({"algorithm": "maml++"}).exp_string
    assert "conventionsmaml++" in Config.from_flags({"datasource": "omniglot", "conventions": "maml++"}).exp_string


def test_the_network_of_its_official_code():
    network = Network.from_config(Config.from_flags({"algorithm": "maml++", "num_classes": 20}))
    assert network.map_size == 1 and network.plus_plus and network.scale and network.epsilon == 1e-5
    weights = network.init(0)
    assert weights["conv2"].shape == (3, 3, 64, 64) and weights["w5"].shape == (64, 20)
    bound = np.sqrt(6 / (64 + 20))
    assert 0.9 * bound < np.abs(weights["w5"]).max() < bound
    color = Network.from_config(Config.from_flags({"algorithm": "maml++", "datasource": "miniimagenet"}))
    assert color.init(0)["w5"].shape == (32 * 5 * 5, 5)


def test_its_images_and_its_loss():
    """Paper is 1 there and ink 0; miniImageNet has ImageNet's mean 0 and deviation 1; the loss is a mean."""
    network = Network.from_config(Config.from_flags({"algorithm": "maml++"}))
    np.testing.assert_allclose(
        network.normalized(tf.constant([[0.0] * 392 + [1.0] * 392])), [[1.0] * 392 + [0.0] * 392]
    )
    color = Network.from_config(Config.from_flags({"algorithm": "maml++", "datasource": "miniimagenet"}))
    mean = np.tile([0.485, 0.456, 0.406], 84 * 84)
    two_up = mean + 2 * np.tile([0.229, 0.224, 0.225], 84 * 84)
    np.testing.assert_allclose(color.normalized(tf.constant(np.stack([mean, two_up]), tf.float32))[1], 2.0, rtol=1e-5)
    own = Config.from_flags({"algorithm": "maml++", "normalize": "0.5/0.25"})
    assert Network.from_config(own).normalization == ((0.5,), (0.25,))
    model = algorithms.build(Config.from_flags({"algorithm": "maml++"}))
    logits, labels = tf.constant(np.random.default_rng(0).normal(size=[10, 5]), tf.float32), tf.eye(5)[:5]
    labels = tf.concat([labels, labels], 0)
    np.testing.assert_allclose(model.loss_func(logits, labels), mean_xent(logits, labels))


def test_its_split_of_omniglot():
    """1150, 50 and 423 characters, of the sorted paths shuffled by NumPy with the seed that RandomState(0) draws."""
    characters = [(f"alphabet{i % 50:02}", f"character{i // 50:02}") for i in range(1623)]
    order = plus_plus_order(reversed(characters))
    assert sorted(order) == sorted(characters)
    places = np.random.RandomState(np.random.RandomState(0).randint(1, 999999)).permutation(1623)
    paths = sorted("/".join(name) for name in characters)
    assert ["/".join(name) for name in order] == [paths[place] for place in places]
    sizes = [len(order[cut]) for cut in PLUS_PLUS_SPLIT.values()]
    assert sizes == [1150, 50, 423]


def test_only_training_tasks_are_turned():
    for flags, expected in (({"algorithm": "maml++"}, [True, False, False]), ({"datasource": "omniglot"}, [True] * 3)):
        config = Config.from_flags(flags)
        assert [config.turns_classes(split) for split in ("train", "val", "test")] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"conventions": "maml++"}, "--conventions=maml\\+\\+ is for images"),
        ({"algorithm": "reptile", "conventions": "maml++"}, "conventions has no meaning with --algorithm=reptile"),
        ({"algorithm": "protonet", "test_checkpoint": "ensemble", "train": False}, "take best"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        Config.from_flags(flags)


def test_an_ensemble_averages_the_outputs_of_its_members():
    model = tiny_model("strided, mean head", "batch_norm", num_updates=2)
    members, episodes = [tiny_weights(model, seed) for seed in (1, 2, 3)], tiny_episodes(model, 3, 4)
    found = model.evaluate(members, episodes, 3)
    for number, task in enumerate(episodes.tasks()):
        outcomes = [model.task_metalearn(member, task, 3, every_step=True) for member in members]
        before = np.mean([outcome.outputa for outcome in outcomes], 0)
        np.testing.assert_allclose(found["loss"][number, 0], model.loss_func(before, task.labela), rtol=1e-10)
        for step in range(3):
            outputs = np.mean([outcome.outputbs[step] for outcome in outcomes], 0)
            np.testing.assert_allclose(
                found["loss"][number, step + 1], model.loss_func(outputs, task.labelb), rtol=1e-10
            )
            np.testing.assert_allclose(found["accuracy"][number, step + 1], accuracy(outputs, task.labelb))
    alone = model.evaluate([members[0]], episodes, 3)
    for name, values in model.evaluate(members[0], episodes, 3).items():
        np.testing.assert_array_equal(alone[name], values)


def test_the_best_are_kept_and_the_best_of_all_is_chosen(tmp_path):
    model = MAML(Config(norm="None"))
    state = model.init_state()
    for iteration, value in ((10, 0.3), (20, 0.5), (30, 0.4), (40, 0.2), (50, 0.5), (60, 0.45)):
        progress = Progress(iteration, np.zeros([0, 2]), 0.5)
        checkpoints.save_best(tmp_path, model, state, progress, value, keep=3)
    kept = [checkpoint.iteration for checkpoint in checkpoints.best_last(tmp_path)]
    assert kept == [60, 50, 20], "of equals the first is the best"
    assert checkpoints.choose(tmp_path, "best", -1).iteration == 20
    progress = Progress(50, np.zeros([0, 2]), 0.5)  # a training that was killed comes there again
    checkpoints.save_best(tmp_path, model, state, progress, 0.5, keep=3)
    assert [checkpoint.iteration for checkpoint in checkpoints.best_last(tmp_path)] == kept
    checkpoints.save_best(tmp_path, model, state, progress._replace(iteration=70), 0.6, keep=1)
    assert [checkpoint.iteration for checkpoint in checkpoints.best_last(tmp_path)] == [70]


def tensors(folder):
    """What the newest checkpoint holds."""
    reader = tf.train.load_checkpoint(str(checkpoints.list_checkpoints(folder)[-1].prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def predictions_are_the_members_mean(logdir, best, exported):
    """Of an ensemble, in Python and exported: the softmax of the mean of what its members return."""
    rng = np.random.default_rng(0)
    support, query = (rng.random((n, 16, 16, 1), np.float32) for n in (3, 4))
    alone = [maml.load(logdir, test_checkpoint="best", test_iter=int(name.removeprefix("best"))) for name in best]
    outputs = [learner.adapt(support, [0, 1, 2], 1)._outputs(query) for learner in alone]
    expected = tf.nn.softmax(np.mean(outputs, 0)).numpy()
    together = maml.load(logdir, test_checkpoint="ensemble")
    assert together.checkpoint.name == "_".join(best)
    np.testing.assert_allclose(together.adapt(support, [0, 1, 2], 1).predict_proba(query), expected, atol=1e-6)
    assert abs(tf.nn.softmax(outputs[-1]) - expected).numpy().max() > 1e-4, "not those of the best alone"
    loaded = tf.saved_model.load(str(exported)).signatures["serving_default"]
    found = loaded(support_images=support, support_labels=np.arange(3), query_images=query)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys, eagerly):
    """Resumed to the same bits, tested as an ensemble, and exported."""
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"train": 4, "val": 3, "test": 3}, 6, size=16, channels=1)
    flags = ("--algorithm=maml++", "--datasource=folder", "--data_dir=photos", "--image_size=16", "--channels=1")
    flags += ("--num_classes=3", "--update_batch_size=1", "--query_size=2", "--meta_batch_size=1", "--num_filters=2")
    flags += ("--num_updates=2", "--val_interval=2", "--val_tasks=2", "--save_interval=3", "--total_iter_per_epoch=2")
    flags += ("--multi_step_loss_num_epochs=2", "--total_epochs=3")
    whole = (*flags, "--metatrain_iterations=6", "--logdir=whole")
    assert run_here(*whole) == 0
    printed = capsys.readouterr().out
    assert "--test_checkpoint=ensemble" in printed and "per_step_bn=True" in printed and "learn_rates=step" in printed
    [folder] = [path for path in (tmp_path / "whole").iterdir() if path.is_dir()]
    best = [checkpoint.prefix.name for checkpoint in checkpoints.best_last(folder)]
    assert len(best) == 3
    first = tensors(folder)
    for path in folder.glob("model6.*"):
        path.unlink()
    assert run_here(*whole) == 0
    assert "Resuming from iteration 3" in capsys.readouterr().out
    assert any(name.startswith("alpha/") for name in first) and first["model/0/gamma"].shape == (2, 2)
    for name, values in tensors(folder).items():
        np.testing.assert_array_equal(values, first[name], name)
    assert [checkpoint.prefix.name for checkpoint in checkpoints.best_last(folder)] == best
    test = ("--train=False", "--test_set", "--test_tasks=2", "--logdir=whole")
    assert run_here(*test, "--test_checkpoint=ensemble") == 0
    [found] = [json.loads(path.read_text()) for path in tmp_path.glob("whole/*/test_*.json")]
    assert found["checkpoint"] == "_".join(best)
    [row] = maml.compare(["whole"], tasks=2, test_checkpoint="ensemble").rows
    assert row.mean == pytest.approx(found["mean"][2], abs=1e-7)
    assert row.runs[0].iteration == int(best[-1].removeprefix("best")), "of the ensemble, not of the newest"
    learned = {name: weight for name, weight in maml.load("whole").weights.items() if not name.startswith("adam/")}
    assert row.runs[0].parameters == sum(map(np.size, learned.values())), "of one member"
    tf.config.run_functions_eagerly(False)
    one = ("--test_num_updates=1", "--export_dir=together")  # step: more take longer to trace
    assert run_here("--predict", "--logdir=whole", "--test_checkpoint=ensemble", *one) == 0
    predictions_are_the_members_mean(tmp_path / "whole", best, tmp_path / "together")
