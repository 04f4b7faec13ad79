"""Reptile's adaptation and meta-update, against numbers derived by hand, and what its tests measure."""

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms import reptile
from maml.algorithms.reptile import Reptile, Task, after_all, minibatches
from maml.config import Config
from maml.data_generator import Episodes
from maml.training.runs import open_run, record_run
from maml.training.updates import update
from tests.core.test_closed_form import SCALAR, Linear, assert_exact, linear_model, tensors
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

BETA_2, EPSILON = 0.999, 1e-8


def scalar_model(**settings) -> Reptile:
    """Reptile on f(x) = x·w, from w = 1 with α = 1/8 and SGD unless the settings say otherwise."""
    defaults = {"update_lr": 1 / 8, "inner_optimizer": "sgd", "inner_batch": 1, "inner_iters": 1}
    config = Config(algorithm="reptile", dtype="float64", norm="None", **defaults | settings)
    return Reptile(config, Linear(1, 1))


def state_at_one(model: Reptile):
    state = model.init_state()
    return state._replace(weights=state.weights | {"w": tf.constant([[1.0]], tf.float64)})


def test_one_step_of_sgd_is_joint_training():
    """With k = 1, θ − φ = −α g, so the meta-update is a step of rate ε·α on the mean of the tasks' losses.

    L(w) = (x·w − y)² has g = 2·x·(x·w − y): −4 for x = 1, y = 3, and −½ for x = ½, y = 1. With ε = ½:
    w = 1 + ½·⅛·(4 + ½)/2 = 1 + 9/64. The loss is the mean of 4 and ¼.
    """
    model = scalar_model(meta_step=1 / 2)
    state, loss = update(model, state_at_one(model), SCALAR, tf.constant(0))
    assert_exact(state.weights["w"], [[73 / 64]])
    assert_exact(loss, 17 / 8)


# One task of the two points of SCALAR's tasks, taken one by one: gradients g = (−4, −½), second derivatives h = (2, ½).
TWO_POINTS = tensors([[[1], [1 / 2]]], [[[3], [1]]])


@pytest.mark.parametrize(("order", "weight"), [((0, 1), 49 / 32), ((1, 0), 99 / 64)])
def test_two_steps_are_a_joint_step_and_one_of_first_order_maml(order, weight):
    """With k = 2, (φ − θ₂)/α = g₁ + g₂ − α·h₂·g₁, where g₂ − α·h₂·g₁ is the first-order MAML gradient.

    In the order (1, 2): −4 − ½ + ⅛·½·4 = −17/4, θ = 1 + 17/32; in the order (2, 1): −4 − ½ + ⅛·2·½ = −35/8,
    θ = 1 + 35/64. First-order MAML adapts to the first point and takes its gradient at the second.
    """
    model = scalar_model()
    weights = state_at_one(model).weights
    inputs, labels = (tensor[0] for tensor in TWO_POINTS)
    adapted = model.adapt_task(weights, Task(inputs, labels, tf.constant([[point] for point in order])))
    assert_exact(adapted.weights["w"], [[weight]])

    support, query = ([tensor[:, point : point + 1] for tensor in TWO_POINTS] for point in order)
    _, first_order = linear_model(update_lr=1 / 8, stop_grad=True).gradient(weights, Episodes(*support, *query), 0)
    joint = (-4, -1 / 2)[order[0]]
    assert_exact(1 - (joint + first_order["w"]) / 8, [[weight]])


def test_two_steps_in_either_order_follow_the_mean_gradient_and_their_agreement(monkeypatch):
    """The mean over both orders is g₁ + g₂ − α/2·(h₂·g₁ + h₁·g₂), in the paper's terms AvgGrad − α·AvgGradInner.

    The last term is −α/2 times the derivative of g₁·g₂: the step also makes the minibatches' gradients agree. Here
    it is 1/16·(2 + 1): −9/2 + 3/16 = −69/16. With ε = ½, w = 1 + ½·⅛·69/16 = 1 + 69/256.
    """
    monkeypatch.setattr(reptile, "minibatches", lambda *_: tf.constant([[[0], [1]], [[1], [0]]]))
    model = scalar_model(meta_step=1 / 2, inner_iters=2)
    both = [tf.repeat(tensor, 2, 0) for tensor in TWO_POINTS]
    state, _ = update(model, state_at_one(model), Episodes(*both, *both), tf.constant(0))
    assert_exact(state.weights["w"], [[1 + 69 / 256]])


def test_the_meta_step_falls_linearly():
    """From 1 to ¼ in 3 updates: ε = 1, ¾, ½. w moves by ε·9/32·(1/2), see the joint step above at w = 1."""
    model = scalar_model(meta_step=1.0, meta_step_final=1 / 4, metatrain_iterations=3)
    assert_exact([model.meta_step(tf.constant(i)) for i in range(4)], [1, 3 / 4, 1 / 2, 1 / 4])
    for iteration, epsilon in ((0, 1), (2, 1 / 2)):
        state, _ = update(model, state_at_one(model), SCALAR, tf.constant(iteration))
        assert_exact(state.weights["w"], [[1 + epsilon * 9 / 32]])


def test_adam_without_momentum():
    """Two inner steps on (w − 3)², then two more of a second update, which go on from v and t.

    v ← β₂·v + (1 − β₂)·g², w ← w − α·√(1 − β₂ᵗ)·g/(√v + ε). The first step is −α·sign(g) but for ε.
    """
    model = scalar_model(inner_optimizer="adam", inner_iters=2)
    episodes = Episodes(*tensors([[[1]]], [[[3]]], [[[1]]], [[[3]]]))
    state, w, v = state_at_one(model), 1.0, 0.0
    for t in range(1, 5):
        g = 2 * (w - 3)
        v = BETA_2 * v + (1 - BETA_2) * g**2
        w -= 1 / 8 * np.sqrt(1 - BETA_2**t) * g / (np.sqrt(v) + EPSILON)
        if t == 1:
            assert w == pytest.approx(9 / 8, abs=1e-7)
        if t % 2 == 0:
            state, _ = update(model, state._replace(), episodes, tf.constant(0))
            assert_exact(state.weights["w"], [[w]])
            assert_exact(state.weights["adam/v/w"], [[v]])
            assert_exact(state.weights["adam/step"], t)


def test_adam_is_carried_as_if_tasks_came_one_after_another():
    """Tasks with the squared gradients (1, 2), (3, 4), (5, 6), from v = 10: after them all, v has had six steps."""
    squares = np.array([[1.0, 2], [3, 4], [5, 6]])

    def mean(v, values):
        for value in values:
            v = BETA_2 * v + (1 - BETA_2) * value
        return v

    before, after = tensors([10], [[mean(10, task)] for task in squares])
    assert_exact(after_all(before, after, 2), [mean(10, squares.ravel())])


def test_sgd_has_no_state():
    assert set(scalar_model().init_state().weights) == {"w"}


def test_minibatches_go_round_the_examples():
    """Three examples in minibatches of two: the second minibatch ends one round and begins the next."""
    batches = minibatches([1, 2], 4, 3, 6, 2)
    assert batches.shape == [4, 6, 2]
    rounds = np.reshape(batches, [4, 4, 3])
    np.testing.assert_array_equal(np.sort(rounds, -1), np.broadcast_to(np.arange(3), [4, 4, 3]))
    assert len(np.unique(rounds.reshape(-1, 3), axis=0)) > 3  # in several orders


def test_the_inner_loss_is_a_mean():
    """Two classes, logits 0: log 2 for any number of examples."""
    model = tiny_reptile("fc", "None")
    for classes in ([0, 1, 1], [0, 0, 1, 1]):
        labels = tf.one_hot(classes, 2, dtype=tf.float64)
        assert_exact(model.loss_func(tf.zeros([len(classes), 2], tf.float64), labels), np.log(2))


def tiny_reptile(network: str, norm: str, **settings) -> Reptile:
    """The real learner on a small network, with steps large enough to see."""
    maml = tiny_model(network, norm)
    defaults = {"inner_iters": 2, "inner_batch": 3, "update_lr": 0.1, "eval_inner_batch": 3}
    return Reptile(maml.config.replace(algorithm="reptile", **defaults | settings), maml.model)


def start(model: Reptile) -> dict:
    return model.init_state().weights | tiny_weights(model, 3)


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("network", ["fc", "strided, flat head", "pooled, flat head"])
def test_every_weight_moves_differently_in_every_task(network, norm):
    model = tiny_reptile(network, norm)
    weights, episodes = start(model), tiny_episodes(model, 5, tasks=2)
    fast, other = (model.adapt(weights, task.inputa, task.labela, 2) for task in episodes.tasks())
    assert set(fast) == {name for name in weights if not name.startswith("adam/")}
    head = "b4" if network == "fc" else "b5"
    for name, weight in fast.items():
        if norm == "layer_norm" or name[0] != "b" or name == head:  # a bias before batch-norm has no effect
            assert np.any(weight != weights[name]), name
            assert np.any(weight != other[name]), name


def test_a_dense_network_is_compiled_as_a_whole():
    """By XLA, as training compiles it; no steps at all leave the weights as they are."""
    model = tiny_reptile("fc", "batch_norm", train=False)
    state, episodes = model.init_state()._replace(weights=start(model)), tiny_episodes(model, 5)
    for function in (lambda: update(model, state, episodes, tf.constant(1))[0].weights, lambda: measured(model, state)):
        assert relative_error(tf.function(function, jit_compile=True, autograph=False)(), function()) < 1e-9
    [task, *_] = episodes.tasks()
    assert relative_error(model.adapt(state.weights, task.inputa, task.labela, 0), fast_of(state.weights)) == 0


def measured(model: Reptile, state) -> dict:
    return model.evaluate(state.weights, tiny_episodes(model, 6), 3)


def test_a_query_alone_does_not_know_the_others():
    """Transductive: all queries share one batch. Alone: the statistics are those of the support set and one query."""
    model = tiny_reptile("strided, flat head", "batch_norm", train=False)
    weights, episodes = start(model), tiny_episodes(model, 5, tasks=2, queries=2)
    for index, (inputa, labela, inputb, labelb) in enumerate(episodes.tasks()):
        fast = model.adapt(weights, inputa, labela, 2)
        together, alone = model.predict(fast, inputa, inputb), model.predict_alone(fast, inputa, inputb)
        some = (model.predict(fast, inputa, inputb[:4]), model.predict_alone(fast, inputa, inputb[:4]))
        assert_exact(some[1], alone[:4])
        assert relative_error({"": some[0]}, {"": together[:4]}) > 1e-3
        assert_exact(alone[5], model.model.apply(fast, tf.concat([inputa, inputb[5:]], 0))[-1])

        measures = model.evaluate(weights, episodes, 2)
        assert measures["accuracy"].shape == (2, len(model.columns(2)))
        before = model.model.apply(fast_of(weights), inputa)
        losses = [model.loss_func(*pair) for pair in ((before, labela), (together, labelb), (alone, labelb))]
        assert_exact(measures["loss"][index], losses)


def fast_of(weights: dict) -> dict:
    return {name: weight for name, weight in weights.items() if not name.startswith("adam/")}


def test_a_training_episode_is_measured_on_as_many_shots_as_a_test():
    """The first `update_batch_size` of every class: what comes after them changes nothing."""
    model = tiny_reptile("fc", "None", update_batch_size=1)
    weights, episodes = start(model), tiny_episodes(model, 5, tasks=2)
    more = episodes._replace(
        inputa=tf.concat([episodes.inputa, episodes.inputb], 1), labela=tf.concat([episodes.labela, episodes.labelb], 1)
    )
    for measure, expected in model.evaluate(weights, episodes, 3).items():
        assert_exact(model.evaluate(weights, more, 3)[measure], expected)


def test_a_changed_length_bends_the_schedule_and_is_said(tmp_path):
    """MAML's training may be made longer at any time; Reptile's meta-step falls over the whole length."""
    for settings, said in (({}, True), ({"meta_step": 0.5, "meta_step_final": 0.5}, False)):
        config = Config.from_flags({"algorithm": "reptile", "logdir": str(tmp_path / str(said))} | settings)
        folder, _ = open_run(config)
        record_run(folder, config)
        _, notes = open_run(config.replace(metatrain_iterations=7))
        assert any("--metatrain_iterations was 15000, is 7" in note for note in notes) == said
