"""Adaptation and meta-gradient of tiny linear models, against numbers derived by hand.

The model is the real one; only its network is a stand-in, linear in its weights, so that a mean
squared error is a quadratic and every step can be written down. All numbers are float64.
"""

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms.adam import adam_init
from maml.algorithms.adapting import TrainState
from maml.config import Config
from maml.data_generator import Episodes
from maml.maml import MAML
from maml.models.protocol import Model, Weights
from maml.training.updates import update
from tests.tiny import adapt_all


def assert_exact(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


class Linear(Model):
    """f(x) = x·w + β, with β (if it is among the weights) meta-learned but not adapted."""

    adapted = frozenset(["w"])
    dtype = "float64"

    def __init__(self, dim_input: int, dim_output: int):
        self.shape = dim_input, dim_output

    def init(self, seed: int) -> Weights:
        """Zeros."""
        return {"w": tf.zeros(self.shape, tf.float64)}

    def apply(self, weights: Weights, inputs: tf.Tensor, reference=None) -> tf.Tensor:
        """[examples, dim_input] → [examples, dim_output]."""
        return inputs @ weights["w"] + weights.get("model/0/beta", tf.constant(0, tf.float64))


def linear_model(dim_input=1, dim_output=1, **settings) -> MAML:
    """The learner with a linear network."""
    config = Config(dtype="float64", norm="None", **settings)
    return MAML(config, Linear(dim_input, dim_output))


def tensors(*arrays) -> list[tf.Tensor]:
    return [tf.constant(array, tf.float64) for array in arrays]


# Two tasks of one support and one query point each.
SCALAR = Episodes(
    *tensors(
        [[[1.0]], [[0.5]]],  # support x
        [[[3.0]], [[1.0]]],  # support y
        [[[2.0]], [[4.0]]],  # query x
        [[[1.0]], [[-0.75]]],  # query y
    )
)


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize(
    ("num_updates", "theta", "residual", "second_order"),
    [
        (1, (3 / 2, 17 / 16), (2, 5), (3 / 4, 15 / 16)),
        (3, (69 / 32, 4817 / 4096), (53 / 16, 5585 / 1024), (27 / 64, 3375 / 4096)),
    ],
)
def test_scalar_quadratic(num_updates, theta, residual, second_order, stop_grad):
    """L(w) = (x·w − y)², from w = 1 with α = 1/8.

    A step is w' = w − 2α·x·(x·w − y) = w* + r·(w − w*), with w* = y/x and r = 1 − 2α·x²; so K
    steps give θ = w* + rᴷ·(w − w*).
        task 1: x = 1, y = 3: w* = 3, r = 3/4; θ = 3 − 2·3/4 = 3/2, or 3 − 2·27/64 = 69/32.
        task 2: x = 1/2, y = 1: w* = 2, r = 15/16; θ = 2 − 15/16 = 17/16, or 2 − 3375/4096 = 4817/4096.
    Query residuals e = x_q·θ − y_q:
        task 1: 2·3/2 − 1 = 2, or 2·69/32 − 1 = 53/16.
        task 2: 4·17/16 + 3/4 = 5, or 4·4817/4096 + 3/4 = 5585/1024.
    The query loss is e²; its gradient by w is 2·x_q·e·dθ/dw with dθ/dw = rᴷ, which first-order
    MAML takes to be 1. The meta-loss and its gradient are means over the two tasks.
    """
    model = linear_model(update_lr=1 / 8, num_updates=num_updates, stop_grad=stop_grad)
    weights = {"w": tf.constant([[1.0]], tf.float64)}
    outcome = adapt_all(model, weights, SCALAR, num_updates)
    assert_exact(tf.reshape(outcome.fast_weights["w"], [-1]), theta)
    assert_exact(outcome.lossa, [4, 1 / 4])
    assert_exact(outcome.lossesb[-1], np.square(residual))

    loss, gradient = model.gradient(weights, SCALAR, 0)
    derivative = np.ones(2) if stop_grad else np.array(second_order)
    expected = np.mean(2 * np.array([2, 4]) * residual * derivative)
    assert_exact(loss, np.mean(np.square(residual)))
    assert_exact(gradient["w"], [[expected]])


MATRIX = Episodes(*tensors([[[1, 0], [1, 1]]], [[[1], [3]]], [[[2, 0], [0, 1]]], [[[1], [1]]]))


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize(
    ("num_updates", "theta", "first_order", "exact"),
    [
        (1, (1, 3 / 4), (2, -1 / 4), (17 / 16, -11 / 16)),
        (3, (89 / 64, 39 / 32), (57 / 16, 7 / 32), (785 / 1024, -2035 / 2048)),
    ],
)
def test_matrix_quadratic(num_updates, theta, first_order, exact, stop_grad):
    """L(w) = mean((X·w − y)²) = ½·|X·w − y|² on two points, from w = 0 with α = 1/4.

    A step is w' = w − α·Xᵀ(X·w − y) = M·w + v, with M = I − α·XᵀX and v = α·Xᵀy.
        X = [[1, 0], [1, 1]], y = (1, 3): XᵀX = [[2, 1], [1, 1]], Xᵀy = (4, 3);
        M = ¼·[[2, −1], [−1, 3]], v = (1, 3/4), M³ = [[15, −20], [−20, 35]]/64, and the minimum is
        at w* = (1, 2).
    So θ = w* − Mᴷ·w*: (1, 3/4) after one step, (1, 2) − (−25, 50)/64 = (89/64, 39/32) after three.
    On the query points X_q = [[2, 0], [0, 1]], y_q = (1, 1), the gradient by θ is X_qᵀ(X_q·θ − y_q):
        one step: X_qᵀ(1, −1/4) = (2, −1/4); three steps: X_qᵀ(57/32, 7/32) = (57/16, 7/32).
    First-order MAML stops there. The meta-gradient is (dθ/dw)ᵀ = Mᴷ (symmetric) times it:
        one step: ¼·(4 + 1/4, −2 − 3/4) = (17/16, −11/16);
        three steps: (15·114 − 20·7, −20·114 + 35·7)/2048 = (785/1024, −2035/2048).
    """
    model = linear_model(2, update_lr=1 / 4, num_updates=num_updates, stop_grad=stop_grad)
    weights = model.model.init(0)
    outcome = adapt_all(model, weights, MATRIX, num_updates)
    assert_exact(outcome.fast_weights["w"][0, :, 0], theta)
    _, gradient = model.gradient(weights, MATRIX, 0)
    assert_exact(gradient["w"][:, 0], first_order if stop_grad else exact)


def test_inner_step_descends_and_reports_the_loss_before():
    """One step of the scalar quadratic: w' = w − 2α·x·(x·w − y), with L and f(x) under w.

    Task 1: 1 − 2·1/8·1·(1 − 3) = 3/2, f = 1, L = 4. Task 2: 1 − 2·1/8·1/2·(1/2 − 1) = 17/16, f = 1/2,
    L = 1/4. From fast weights that differ, w = (3/2, 2): task 1 goes to 3/2 + 3/8 = 15/8, task 2 rests.
    """
    model = linear_model(update_lr=1 / 8)
    fast = {"w": tf.constant([[1.0]], tf.float64)}
    for task, after, output, before in zip(SCALAR.tasks(), (3 / 2, 17 / 16), (1, 1 / 2), (4, 1 / 4), strict=True):
        stepped, outputs, loss = model.inner_step(fast, task.inputa, task.labela)
        assert_exact(stepped["w"], [[after]])
        assert_exact(outputs, [[output]])
        assert_exact(loss, before)
    for task, start, after in zip(SCALAR.tasks(), (3 / 2, 2), (15 / 8, 2), strict=True):
        stepped, _, _ = model.inner_step({"w": tf.constant([[start]], tf.float64)}, task.inputa, task.labela)
        assert_exact(stepped["w"], [[after]])


@pytest.mark.parametrize("stop_grad", [False, True])
def test_beta_is_meta_learned_but_not_adapted(stop_grad):
    """L(w, β) = (x·w + β − y)², from w = 1, β = 1/2 with α = 1/8; β takes no inner step.

    Support x = 1, y = 3: θ = 1 − 2·1/8·(1 + 1/2 − 3) = 11/8. Query x = 2, y = 1: e = 11/4 + 1/2 − 1 = 9/4.
    dθ/dw = 1 − 2α·x² = 3/4 and dθ/dβ = −2α·x = −1/4, so the meta-gradient is
        by w: 2·x_q·e·3/4 = 27/4 (first order: 9);
        by β: 2·e·(1 + x_q·dθ/dβ) = 9/2·(1 − 1/2) = 9/4 (first order: 9/2).
    """
    model = linear_model(update_lr=1 / 8, stop_grad=stop_grad)
    weights = {"w": tf.constant([[1.0]], tf.float64), "model/0/beta": tf.constant([0.5], tf.float64)}
    episodes = Episodes(*tensors([[[1]]], [[[3]]], [[[2]]], [[[1]]]))
    outcome = adapt_all(model, weights, episodes, 1)
    assert_exact(outcome.fast_weights["w"], [[[11 / 8]]])
    np.testing.assert_array_equal(outcome.fast_weights["model/0/beta"], [[0.5]])
    _, gradient = model.gradient(weights, episodes, 0)
    assert_exact(gradient["w"], [[9 if stop_grad else 27 / 4]])
    assert_exact(gradient["model/0/beta"], [9 / 2 if stop_grad else 9 / 4])


def classification_model(dim_input, **settings) -> MAML:
    return linear_model(dim_input, 2, datasource="omniglot", num_classes=2, **settings)


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.parametrize("shots", [1, 2])
def test_cross_entropy_is_summed_over_classes(shots, stop_grad):
    """Two classes, logits (x·w₁, x·w₂) from w = 0: every probability is ½.

    The inner loss is the *sum* of the examples' cross-entropies over K, so its gradient is
    Σ x·(p − y)/K. With x = 1 of class 1 and x = 2 of class 2 (K times each):
        1·(−½, ½) + 2·(½, −½) = (½, −½), and with α = 2/5 θ = (−1/5, 1/5).
    Its Hessian is Σ x²·(diag(p) − ppᵀ)/K = 5·¼·[[1, −1], [−1, 1]], so dθ/dw = I − ½·[[1, −1], [−1, 1]]
    = ½·[[1, 1], [1, 1]].
    One query of class 1 at x = 3 has p₂ = 1/(1 + exp(−6/5)) and the gradient by θ 3·(−p₂, p₂)/K, which
    first-order MAML keeps and dθ/dw takes to 0: to second order, w₁ and w₂ only move together.
    The query loss is −log(1 − p₂)/K and the accuracy 0; before adaptation it is 2·log 2.
    """
    model = classification_model(1, update_batch_size=shots, update_lr=2 / 5, stop_grad=stop_grad)
    weights = model.model.init(0)
    episodes = Episodes(*tensors([[[1], [2]] * shots], [[[1, 0], [0, 1]] * shots], [[[3]]], [[[1, 0]]]))
    outcome = adapt_all(model, weights, episodes, 1)
    assert_exact(outcome.fast_weights["w"], [[[-1 / 5, 1 / 5]]])
    wrong = 1 / (1 + np.exp(-6 / 5))
    assert_exact(outcome.lossa, [2 * np.log(2)])
    assert_exact(outcome.lossesb[-1], [-np.log(1 - wrong) / shots])
    _, gradient = model.gradient(weights, episodes, 0)
    expected = np.array([[-3 * wrong, 3 * wrong]]) / shots if stop_grad else np.zeros([1, 2])
    assert_exact(gradient["w"], expected)
    measures = model.evaluate(weights, episodes, 1)
    np.testing.assert_array_equal(measures["accuracy"][0, 1], 0)
    assert_exact(measures["loss"], [[2 * np.log(2), -np.log(1 - wrong) / shots]])


@pytest.mark.parametrize(
    ("datasource", "used"), [("miniimagenet", [[-10, 10], [-6, 6]]), ("omniglot", [[-24, 24], [-6, 6]])]
)
def test_meta_gradient_is_clipped_by_element(datasource, used):
    """With α = 0 from w = 0 the meta-gradient of one query x = (48, 12) of class 1 is x·(−½, ½).

    That is [[−24, 24], [−6, 6]]; for miniImageNet each element is clipped to [−10, 10]. Adam's mean
    after one update is (1 − β₁) = 1/10 of what it was given.
    """
    config = Config(datasource=datasource, num_classes=2, update_batch_size=1, update_lr=0.0, dtype="float64")
    model = MAML(config, Linear(2, 2))
    weights = model.model.init(0)
    episodes = Episodes(*tensors([[[1, 1]]], [[[1, 0]]], [[[48, 12]]], [[[1, 0]]]))
    state, loss = update(model, TrainState(weights, adam_init(weights), adam_init(weights)), episodes, 0)
    assert_exact(loss, np.log(2))
    assert_exact(state.metatrain.m["w"], np.array(used) / 10)
    np.testing.assert_array_equal(state.pretrain.m["w"], np.zeros([2, 2]))


def test_adam_epsilon_stands_outside_the_bias_correction():
    """Adam's first step on a gradient g so small that ε = 1e-8 decides.

    m = (1 − β₁)·g, v = (1 − β₂)·g²; the step is α·√(1 − β₂)/(1 − β₁)·m/(√v + ε)
    = α·s·g/(s·|g| + ε) with s = √(1 − β₂). For g = ε/s it is α/2. (ε inside the bias correction
    would make it α·g/(|g| + ε) = α/(1 + s); with ε = 1e-7 it would be α/11.)
    The pre-update loss (w − y)² has the gradient −2·y at w = 0, so y = −g/2.
    The second step with the same g: m = (1 − β₁²)·g, v = (1 − β₂²)·g²; with s₂ = √(1 − β₂²) it is
    α·s₂·g/(s₂·g + ε), where s₂/s = √(1 + β₂).
    """
    alpha, beta_2, epsilon = 1e-12, 0.999, 1e-8
    gradient = epsilon / np.sqrt(1 - beta_2)
    model = linear_model(meta_lr=alpha, pretrain_iterations=2, metatrain_iterations=0)
    weights = model.model.init(0)
    state = TrainState(weights, adam_init(weights), adam_init(weights))
    episodes = Episodes(*tensors([[[1]]], [[[-gradient / 2]]], [[[1]]], [[[0]]]))
    state, _ = update(model, state, episodes, 0)
    np.testing.assert_allclose(state.weights["w"], [[-alpha / 2]], rtol=1e-12)
    # The weight has moved by 3e-6 of y, so g is the same again to that.
    before = state.weights["w"].numpy()
    state, _ = update(model, state, episodes, 0)
    ratio = np.sqrt(1 + beta_2)
    np.testing.assert_allclose(state.weights["w"] - before, [[-alpha * ratio / (ratio + 1)]], rtol=1e-5)
