"""ANIL, Meta-SGD and learned rates: by hand on a quadratic, against central differences, and each other's limits."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import maml
from maml.algorithms import build
from maml.algorithms.anil import ANIL
from maml.algorithms.nil import NIL
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.maml import MAML
from maml.training.checkpoints import list_checkpoints, remove
from maml.training.gradient_check import check_gradients
from maml.training.updates import update
from tests.command_line import run_here
from tests.core.test_closed_form import SCALAR, assert_exact, linear_model
from tests.image_fixtures import write_class_folders
from tests.tiny import NETWORKS, tiny_episodes, tiny_model, tiny_weights

THETA = 0.7


def by_hand(rates: list[float], first_order: bool) -> tuple[list[float], list[list[float]]]:
    """∂L/∂θ and ∂L/∂α of each step, of each task, for L = (θ x − y)² and θ ← θ − α · 2 x (θ x − y)."""
    by_theta, by_rates = [], []
    for task in SCALAR.tasks():
        xa, ya, xb, yb = (tensor.numpy().item() for tensor in task)
        theta, slopes = THETA, []
        for rate in rates:
            slopes.append(2 * xa * (theta * xa - ya))
            theta -= rate * slopes[-1]
        query = 2 * xb * (theta * xb - yb)
        factors = [1.0 if first_order else 1 - 2 * rate * xa**2 for rate in rates]
        by_theta.append(query * np.prod(factors))
        by_rates.append([-query * slope * np.prod(factors[i + 1 :]) for i, slope in enumerate(slopes)])
    return by_theta, by_rates


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("kind", "rates"), [("weight", [0.3]), ("step", [0.3, 0.1]), ("step", [0.2, -0.1, 0.4])])
def test_the_gradient_by_theta_and_by_alpha_is_the_one_by_hand(kind, rates, first_order):
    """First order drops the second derivatives, and still learns α."""
    model = linear_model(learn_rates=kind, num_updates=len(rates), stop_grad=first_order)
    alpha = tf.constant([rates] if kind == "weight" else rates, tf.float64)
    weights = {"w": tf.constant([[THETA]], tf.float64), "alpha/w": alpha}
    _, gradient = model.gradient(weights, SCALAR, 0)
    by_theta, by_rates = by_hand(rates, first_order)
    assert_exact(gradient["w"], [[np.mean(by_theta)]])
    assert_exact(np.ravel(gradient["alpha/w"]), np.mean(by_rates, 0))


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    "flags",
    [
        {"learn_rates": "weight"},
        {"learn_rates": "step"},
        {"adapt": "body"},
        {"algorithm": "anil", "adapt": "head"},
        {"algorithm": "anil", "adapt": "head", "learn_rates": "step"},
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["sinusoid", "pooled, flat head"])
def test_central_differences(network, flags):
    plain = tiny_model(network, "batch_norm" if network != "sinusoid" else "None", num_updates=2)
    config = plain.config.replace(**flags)
    model = (ANIL if config.algorithm == "anil" else MAML)(config, plain.model)
    weights = tiny_weights(plain, 3)
    weights |= {name: 0.5 * rate for name, rate in model.init_rates(weights).items()}
    report = check_gradients(model, weights, tiny_episodes(plain, 2, 2), directions=3)
    assert report.exact, report.lines()


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "None"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_body_computed_once_is_a_body_computed_in_every_step(network, norm):
    """And the body learns through the inner gradient, too: its gradient is not that of a constant body."""
    plain = tiny_model(network, norm, num_updates=3, adapt="head")
    weights, episodes = tiny_weights(plain, 1), tiny_episodes(plain, 2, 2)
    once, slow = ANIL(plain.config, plain.model), MAML(plain.config, plain.model)
    (loss, fast), (expected_loss, expected) = (model.gradient(weights, episodes, 0) for model in (once, slow))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    for name, gradient in expected.items():
        np.testing.assert_allclose(fast[name], gradient, rtol=1e-8, atol=1e-12)
    stopped = MAML(plain.config.replace(stop_grad=True), plain.model).gradient(weights, episodes, 0)[1]
    body = weights.keys() - plain.model.head
    assert max(np.abs(stopped[name] - expected[name]).max() for name in body) > 1e-6
    measured, by_every_step = (model.evaluate(weights, episodes, 4) for model in (once, slow))
    for name, values in by_every_step.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-9)


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
def test_anil_adapts_and_predicts_as_it_is_tested(bn_mode):
    plain = tiny_model("pooled, flat head", "batch_norm", num_updates=2, adapt="head", bn_mode=bn_mode, train=False)
    model, weights = ANIL(plain.config, plain.model), tiny_weights(plain, 1)
    task = tiny_episodes(plain, 1, 2).tasks()[0]
    adapted = model.adapt(weights, task.inputa, task.labela, 2)
    assert {name for name in weights if np.any(adapted[name] != weights[name])} == plain.model.head
    outcome = model.task_metalearn(weights, task, 2)
    np.testing.assert_allclose(model.predict(adapted, task.inputa, task.inputb), outcome.outputbs[-1], rtol=1e-9)


def test_more_steps_than_learned_rates_take_the_last_one():
    model = linear_model(learn_rates="step", num_updates=2)
    weights = {"w": tf.constant([[THETA]], tf.float64), "alpha/w": tf.constant([0.3, 0.1], tf.float64)}
    longer = weights | {"alpha/w": tf.constant([0.3, 0.1, 0.1, 0.1], tf.float64)}
    task = SCALAR.tasks()[0]
    expected = linear_model(learn_rates="step", num_updates=4).adapt(longer, task.inputa, task.labela, 4)
    assert_exact(model.adapt(weights, task.inputa, task.labela, 4)["w"], expected["w"])


@pytest.mark.parametrize("kind", ["weight", "step"])
def test_learned_rates_begin_as_published_and_are_given_to_adam(kind):
    config = Config.from_flags({"norm": "None", "learn_rates": kind, "update_lr": 0.05, "num_updates": 2})
    model = MAML(config)
    state = model.init_state()
    rates = {name: value.numpy() for name, value in state.weights.items() if name.startswith("alpha/")}
    assert {name.removeprefix("alpha/") for name in rates} == model.model.adapted
    if kind == "weight":
        every = np.concatenate([rate.ravel() for rate in rates.values()])
        assert all(rates[f"alpha/{name}"].shape == state.weights[name].shape for name in model.adapted)
        assert 0.005 <= every.min() < 0.007 and 0.098 < every.max() <= 0.1
        assert abs(every.mean() - 0.0525) < 0.002 and len(np.unique(every)) > 0.9 * len(every)
    else:
        assert all(rate.tolist() == pytest.approx([0.05, 0.05]) for rate in rates.values())
    data = DataGenerator(config)
    after, _ = update(model, state, data.episodes("train", 0, 4), 0)
    assert all(np.any(after.weights[name] != rate) for name, rate in rates.items())


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("algorithm", ["anil", "metasgd"])
def test_a_run_resumes_to_the_bit_and_is_loaded(tmp_path, monkeypatch, algorithm):
    monkeypatch.chdir(tmp_path)
    flags = (f"--algorithm={algorithm}", "--norm=None", "--meta_batch_size=2", "--val_tasks=0", "--save_interval=5")
    saved = []
    for _ in range(2):
        assert run_here(*flags, "--metatrain_iterations=10", "--logdir=whole") == 0
        [folder] = [path for path in (tmp_path / "whole").iterdir() if path.is_dir()]
        assert folder.name.startswith(f"{algorithm}.cls_5")
        newest = list_checkpoints(folder)[-1]
        assert newest.iteration == 10
        reader = tf.train.load_checkpoint(str(newest.prefix))
        saved.append({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})
        if len(saved) == 1:
            remove(newest)  # and goes on from the fifth
    assert any("alpha/" in name for name in saved[0]) == (algorithm == "metasgd")
    for name, values in saved[0].items():
        np.testing.assert_array_equal(values, saved[1][name], name)
    learner = maml.load("whole")
    x = np.linspace(-3, 3, 5)[:, None]
    assert np.isfinite(learner.adapt(x, np.sin(x), num_updates=3).predict(x)).all()


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("rates", ["none", "weight", "step"])
def test_what_is_adapted_may_be_chosen_in_a_test(tmp_path, monkeypatch, rates):
    monkeypatch.chdir(tmp_path)
    flags = ("--norm=None", "--metatrain_iterations=2", "--meta_batch_size=2", "--val_tasks=0")
    assert run_here(*flags, f"--learn_rates={rates}") == 0
    for part in ("head", "body", "all"):
        assert run_here("--train=False", "--test_set", "--test_tasks=2", f"--adapt={part}") == 0
    found = {path.stem: json.loads(path.read_text())["mean"] for path in tmp_path.glob("logs/*/*/test_*.json")}
    assert len(found) == 3 and len({tuple(mean) for mean in found.values()}) == 3
    assert len({mean[0] for mean in found.values()}) == 1, "before adaptation all are one"


@pytest.mark.parametrize(("kind", "algorithm"), [(maml.MetaSGD, "metasgd"), (maml.MAMLPlusPlus, "maml++")])
@pytest.mark.parametrize("datasource", ["sinusoid", "omniglot"])
def test_a_class_of_any_config_has_the_tricks_of_its_algorithm(kind, algorithm, datasource):
    flags = {"datasource": datasource, "num_updates": 2} | ({"norm": "None"} if datasource == "sinusoid" else {})
    named = build(Config.from_flags({"algorithm": algorithm, "update_lr": 0.1} | flags))
    plain = kind(Config.from_flags(flags | {"update_lr": 0.1, "max_pool": datasource != "sinusoid"}))
    assert type(named) is kind
    found, expected = plain.init_state().weights, named.init_state().weights
    assert {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in expected.items()}
    rates = [name for name in found if name.startswith("alpha/")]
    assert set(rates) == {f"alpha/{name}" for name in plain.adapted}
    for name in rates:
        np.testing.assert_array_equal(found[name], expected[name])
    for trick in (
        "learn_rates",
        "multi_step_loss_num_epochs",
        "total_epochs",
        "per_step_bn",
        "keep_best",
        "conventions",
    ):
        assert getattr(plain.config, trick) == getattr(named.config, trick)
    assert kind(named.config).config == named.config and isinstance(plain.of(plain.config), kind)


def test_published_defaults():
    assert isinstance(build(Config.from_flags({"algorithm": "anil"})), ANIL)
    config = Config.from_flags({"algorithm": "metasgd", "datasource": "omniglot"})
    assert (config.learn_rates, config.num_updates) == ("weight", 1)
    with pytest.raises(UserError, match="adapt"):
        Config.from_flags({"algorithm": "protonet", "adapt": "head"})


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
@pytest.mark.parametrize("flags", [{}, {"per_step_bn": True}], ids=str)
def test_a_cosine_head_weighs_the_labels_of_the_support_set(flags, bn_mode):
    plain = tiny_model("pooled, flat head", "batch_norm", num_updates=2)
    network = dataclasses.replace(plain.model, scale="per_step_bn" in flags)
    model = NIL(plain.config.replace(train=False, test_head="cosine", bn_mode=bn_mode, **flags), network)
    weights = model.init_state().weights | tiny_weights(plain, 1) if not flags else model.init_state().weights
    if flags:  # the last row is taken
        weights["model/0/gamma"] *= tf.constant([[5.0, 1.0, 1.0], [1.0, 2.0, -1.0]], tf.float64)
    episodes = tiny_episodes(plain, 2, 2)
    measured = model.evaluate(weights, episodes, 7)
    assert [column.key for column in model.columns(7)] == ["nil"] and measured["accuracy"].shape == (2, 1)
    here = {n: w[-1] if n in network.norms and flags else w for n, w in weights.items()}
    for task, accuracy in zip(episodes.tasks(), measured["accuracy"].numpy(), strict=True):
        support = network.features(here, task.inputa).numpy()
        if bn_mode == "support":
            query = network.features(here, tf.concat([task.inputa, task.inputb], 0), len(support)).numpy()[
                len(support) :
            ]
        else:
            query = network.features(here, task.inputb).numpy()
        unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (query, support)]
        attention = np.exp(unit[0] @ unit[1].T)
        expected = np.log(attention / attention.sum(1, keepdims=True) @ task.labela.numpy())
        found = model.predict(model.adapt(weights, task.inputa, task.labela, 7), task.inputa, task.inputb)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        assert accuracy[0] == np.mean(expected.argmax(1) == task.labelb.numpy().argmax(1))


def test_a_cosine_head_from_the_command_line(tmp_path, monkeypatch, capsys, eagerly):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"train": 4, "val": 3, "test": 3}, 6, size=16, channels=1)
    flags = ("--algorithm=anil", "--datasource=folder", "--data_dir=photos", "--image_size=16", "--channels=1")
    flags += ("--num_classes=3", "--update_batch_size=1", "--meta_batch_size=2", "--num_filters=2", "--num_updates=1")
    flags += ("--test_num_updates=1",)
    assert run_here(*flags, "--metatrain_iterations=2", "--val_tasks=0") == 0
    test = ("--train=False", "--test_set", "--test_tasks=4")
    for head in ("trained", "cosine"):
        assert run_here(*test, f"--test_head={head}") == 0
    assert "cosine head, query set" in capsys.readouterr().out
    names = {path.stem for path in tmp_path.glob("logs/*/*/test_*.json")}
    assert len(names) == 2 and sum("headcosine" in name for name in names) == 1
    assert run_here(*flags, "--metatrain_iterations=2", "--test_head=cosine") == 1
    assert "is for --train=False" in capsys.readouterr().err
