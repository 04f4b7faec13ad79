"""MAML++: its schedules against a table by hand, its loss on a quadratic, its gradient against central differences."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms.anil import ANIL
from maml.algorithms.annealing import cosine_rate, step_weights
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.maml import MAML
from maml.models.official import Network
from maml.training.gradient_check import check_gradients
from maml.training.updates import update
from tests.command_line import run_here
from tests.core.test_closed_form import SCALAR, assert_exact, linear_model
from tests.tiny import tiny_episodes, tiny_model, tiny_weights

THETA = 0.7
ALL = {
    "learn_rates": "step",
    "per_step_bn": True,
    "multi_step_loss_num_epochs": 10,
    "total_epochs": 20,
    "first_order_to_second_order_epoch": -1,
}


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (5, [0.1, 0.1, 0.1, 0.1, 0.6]),
        (9, [0.02, 0.02, 0.02, 0.02, 0.92]),
        (10, [0.006, 0.006, 0.006, 0.006, 0.976]),
        (1000, [0.006, 0.006, 0.006, 0.006, 0.976]),
    ],
)
def test_step_weights(epoch, expected):
    np.testing.assert_allclose(step_weights(epoch, 5, 10, "float64"), expected, rtol=1e-12)
    np.testing.assert_allclose(step_weights(tf.constant(epoch), 5, 10, "float64"), expected, rtol=1e-12)
    assert step_weights(epoch, 1, 10, "float64").numpy().tolist() == [1.0]


def test_the_rate_falls_by_a_cosine_and_stays_at_its_lowest():
    rates = [float(cosine_rate(epoch, 1e-3, 1e-5, 4, "float64")) for epoch in (0, 1, 2, 3, 4, 5, 9)]
    quarter = np.cos(np.pi / 4)
    middle, half = (1e-3 + 1e-5) / 2, (1e-3 - 1e-5) / 2
    expected = [1e-3, middle + half * quarter, middle, middle - half * quarter, 1e-5, 1e-5, 1e-5]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def by_hand(theta: float, rates: list[float], task) -> tuple[list[float], list[float], list[list[float]]]:
    """Query losses after every step, their derivatives by θ and by each α, for L = (θ x − y)²."""
    xa, ya, xb, yb = (tensor.numpy().item() for tensor in task)
    losses, by_theta, by_rates = [], [], []
    slopes, through = [], [1.0]
    for rate in rates:
        slopes.append(2 * xa * (theta * xa - ya))
        theta -= rate * slopes[-1]
        through.append(through[-1] * (1 - 2 * rate * xa**2))
        query = 2 * xb * (theta * xb - yb)
        losses.append((theta * xb - yb) ** 2)
        by_theta.append(query * through[-1])
        by_rates.append([-query * slope * through[-1] / through[i + 1] for i, slope in enumerate(slopes)])
        by_rates[-1] += [0.0] * (len(rates) - len(slopes))
    return losses, by_theta, by_rates


@pytest.mark.parametrize(
    ("epoch", "shares"), [(0, [1 / 3] * 3), (1, [1 / 6, 1 / 6, 2 / 3]), (2, [0, 0, 1]), (7, [0, 0, 1])]
)
def test_the_loss_of_every_step_and_its_gradient_are_those_by_hand(epoch, shares):
    """At the end of the annealing the weights are 1/100 and 98/100; behind it the last step alone counts."""
    rates = [0.3, 0.1, -0.2]
    flags = {"learn_rates": "step", "num_updates": 3, "multi_step_loss_num_epochs": 2, "total_iter_per_epoch": 5}
    model = linear_model(**flags)
    weights = {"w": tf.constant([[THETA]], tf.float64), "alpha/w": tf.constant(rates, tf.float64)}
    found = [by_hand(THETA, rates, task) for task in SCALAR.tasks()]
    expected = [np.mean([np.tensordot(shares, part[i], 1) for part in found], 0) for i in range(3)]
    compiled = tf.function(model.gradient, autograph=False)
    for iteration in (5 * epoch, 5 * epoch + 4):  # the weights change once an epoch, and not in it
        for loss, gradient in (
            model.gradient(weights, SCALAR, iteration),
            compiled(weights, SCALAR, tf.constant(iteration)),
        ):
            assert_exact(loss, expected[0])
            assert_exact(gradient["w"], [[expected[1]]])
            assert_exact(gradient["alpha/w"], expected[2])


def test_first_order_until_an_epoch_and_second_order_behind_it():
    weights = {"w": tf.constant([[THETA]], tf.float64), "alpha/w": tf.constant([0.3, 0.1], tf.float64)}
    flags = {"learn_rates": "step", "num_updates": 2}
    first, second = (linear_model(stop_grad=stop, **flags).gradient(weights, SCALAR, 0)[1] for stop in (True, False))
    assert np.abs(first["w"] - second["w"]).max() > 0.01
    model = linear_model(first_order_to_second_order_epoch=1, total_iter_per_epoch=5, **flags)
    for iteration, expected in ((0, first), (9, first), (10, second), (500, second)):
        gradient = model.gradient(weights, SCALAR, tf.constant(iteration))[1]
        for name, slope in expected.items():
            assert_exact(gradient[name], slope)
    assert np.abs(first["alpha/w"]).min() > 0.01, "first order learns α, too"


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_what_is_not_of_the_epoch_is_not_computed(order):
    """Both borders at once, in either order and together: as many branches as there are times between them."""
    model = linear_model(num_updates=2, multi_step_loss_num_epochs=2, first_order_to_second_order_epoch=order - 1)
    seen = []
    model.of_epoch(tf.constant(0), lambda learner: seen.append(learner.config) or tf.constant(0))
    assert [(config.stop_grad, config.multi_step_loss_num_epochs) for config in seen] == [(order > 0, 2)]
    phases = []

    def compute(learner):
        phases.append((learner.config.stop_grad, learner.config.multi_step_loss_num_epochs))
        return tf.constant(len(phases))

    found = tf.function(lambda epoch: model.of_epoch(epoch, compute), autograph=False)
    ran = [phases[int(found(tf.constant(epoch))) - 1] for epoch in range(5)]
    assert ran == [(epoch < order, 2 if epoch < 2 else 0) for epoch in range(5)]
    assert len(phases) == len({0, order, 2})


def test_the_epochs_of_meta_training_begin_behind_the_pretraining():
    config = Config.from_flags({"pretrain_iterations": 500, "total_epochs": 2, "total_iter_per_epoch": 100})
    model = MAML(config)
    rates = [float(model.meta_lr(tf.constant(iteration))) for iteration in (0, 500, 599, 600, 700, 5000)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-3, 5.05e-4, 1e-5, 1e-5], rtol=1e-5)


def test_adam_takes_the_rate_of_the_epoch():
    plain, annealed = (MAML(Config.from_flags({"norm": "None", "total_epochs": epochs})) for epochs in (0, 2))
    state, data = plain.init_state(), DataGenerator(plain.config)
    episodes = data.episodes("train", 0, 4)
    before = state.weights["w3"].numpy()
    steps = {
        (name, iteration): update(model, state, episodes, tf.constant(iteration))[0].weights["w3"].numpy() - before
        for name, model in (("plain", plain), ("annealed", annealed))
        for iteration in (0, 499, 500, 1000)
    }
    for iteration, share in ((0, 1), (499, 1), (500, 0.505), (1000, 0.01)):
        np.testing.assert_allclose(
            steps["annealed", iteration], share * steps["plain", iteration], rtol=2e-3, atol=1e-9
        )


def with_rows(model: MAML, seed: int) -> dict[str, tf.Tensor]:
    """Weights of a model with different rows for each step."""
    rng = np.random.default_rng(seed)
    weights = tiny_weights(model, seed)
    for name in model.model.norms if model.config.per_step_bn else ():
        noise = tf.constant(
            0.3 * rng.normal(size=[model.config.num_updates, *weights[name].shape]), weights[name].dtype
        )
        weights[name] = weights[name] + noise
    return weights | {name: 0.5 * rate for name, rate in model.init_rates(weights).items()}


def tricky(network: str, **flags) -> MAML:
    """A tiny model with flags of MAML++."""
    plain = tiny_model(network, "batch_norm", num_updates=2)
    config = plain.config.replace(**flags)
    kind = ANIL if config.algorithm == "anil" else MAML
    return kind(config, dataclasses.replace(plain.model, scale=config.per_step_bn))


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    ("network", "flags"),
    [
        ("strided, mean head", ALL),
        ("pooled, flat head", ALL | {"algorithm": "anil", "adapt": "head"}),
        ("pooled, flat head", ALL | {"learn_rates": "weight"}),
    ],
    ids=str,
)
def test_central_differences(network, flags):
    model = tricky(network, **flags)
    report = check_gradients(model, with_rows(model, 3), tiny_episodes(model, 2, 2), directions=2)
    assert report.exact, report.lines()


def test_a_step_and_the_query_set_behind_it_have_the_same_row():
    model = tricky("pooled, flat head", per_step_bn=True)
    weights, task = with_rows(model, 1), tiny_episodes(model, 1, 2).tasks()[0]
    found = model.task_metalearn(weights, task, 3, every_step=True)
    plain = MAML(model.config.replace(per_step_bn=False), model.model)
    fast, outputs = weights, []
    for row in (0, 1, 1):  # a third step takes the last row
        here = {name: fast[name][row] if name in model.model.norms else fast[name] for name in weights}
        stepped, _, loss = plain.inner_step(here, task.inputa, task.labela)
        if row == 0:
            np.testing.assert_allclose(found.lossa, loss, rtol=1e-12)
        fast = fast | {name: stepped[name] for name in model.adapted}
        outputs.append(plain.model.apply(stepped, task.inputb))
    for output, expected in zip(found.outputbs, outputs, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-10)
    adapted = model.adapt(weights, task.inputa, task.labela, 3)
    np.testing.assert_allclose(model.predict(adapted, task.inputa, task.inputb), outputs[-1], rtol=1e-10)
    before = model.predict(model.adapt(weights, task.inputa, task.labela, 0), task.inputa, task.inputb)
    first = {name: weights[name][0] if name in model.model.norms else weights[name] for name in weights}
    np.testing.assert_allclose(before, model.model.apply(first, task.inputb), rtol=1e-12)


def test_rows_alike_are_batch_norm_with_a_scale_of_one():
    """Fresh rows leave the official network as it is."""
    flags = {"datasource": "omniglot", "num_updates": 2, "update_batch_size": 1, "num_filters": 4}
    plain, rows = (MAML(Config.from_flags(flags | {"per_step_bn": per_step})) for per_step in (False, True))
    state, of_rows = plain.init_state(), rows.init_state()
    assert {name: tuple(w.shape) for name, w in of_rows.weights.items() if name.startswith("model/")} == {
        f"model/{layer}/{kind}": (2, 4) for layer in range(4) for kind in ("beta", "gamma")
    }
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(size=[5, 784]), tf.float32)
    labels = tf.eye(5)
    adapted = [model.adapt(s.weights, images, labels, 2) for model, s in ((plain, state), (rows, of_rows))]
    outputs = [model.predict(a, images, images) for model, a in zip((plain, rows), adapted, strict=True)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    assert Network.from_config(rows.config).norms == {name for name in of_rows.weights if name.startswith("model/")}


@pytest.mark.parametrize(
    "flags", [{"norm": "None"}, {"norm": "layer_norm"}, {"datasource": "own", "loss": "mse", "norm": "None"}], ids=str
)
def test_rows_without_batch_norm_are_refused(flags):
    with pytest.raises(
        UserError, match="per_step_bn is for the official networks with --norm=batch_norm, and this run"
    ):
        Config.from_flags(flags | {"per_step_bn": True})


@pytest.mark.usefixtures("eagerly")
def test_every_trick_can_be_checked_by_the_user(capsys):
    flags = ("--num_updates=2", "--meta_batch_size=2", "--learn_rates=step", "--per_step_bn", "--pretrain_iterations=5")
    flags += ("--multi_step_loss_num_epochs=3", "--first_order_to_second_order_epoch=5", "--total_epochs=4")
    assert run_here("--check_gradients", *flags) == 0
    assert "The meta-gradient is exact" in capsys.readouterr().out


def test_the_gradient_by_a_learned_rate_is_not_clipped():
    """As in the official MAML++ code, where the rates are not the network's parameters."""
    flags = {"datasource": "miniimagenet", "learn_rates": "step", "num_filters": 2, "image_size": -1}
    model = MAML(Config.from_flags(flags))
    state = model.init_state()
    gradients = {name: 50 * tf.ones_like(weight) for name, weight in state.weights.items()}
    m = model.apply(state, gradients, 0).metatrain.m
    assert {
        name: float(tf.reduce_max(mean)) for name, mean in m.items() if name in ("b5", "alpha/b5")
    } == pytest.approx({"b5": 1.0, "alpha/b5": 5.0})
