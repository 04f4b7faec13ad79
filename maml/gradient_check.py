"""Is the meta-gradient of this very model exact? Compared with central differences in float64.

Central differences know nothing of tapes, closed forms or kernels: they evaluate the meta-loss,
and only that, at points around θ.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maml.data_generator import Episodes
from maml.maml import MAML
from maml.networks import Weights

TASKS = 2  # enough for a proof; the cost grows with them
DIRECTIONS = 5
STEPS = (1e-4, 1e-5, 1e-6, 1e-7)  # lengths in each weight
LIMIT = 1e-5  # of the relative error; kinks and rounding of exact models stay below it


class GradientReport(NamedTuple):
    """What the comparison found.

    errors: relative error of the meta-gradient along each direction, with the best of `STEPS`.
    first_order_error: the largest such error of the first-order gradient.
    second_order_share: ‖g − g₁‖ / ‖g‖, g the exact and g₁ the first-order gradient.
    stop_grad: whether the model is configured to be first-order.
    """

    errors: list[float]
    first_order_error: float
    second_order_share: float
    stop_grad: bool

    @property
    def exact(self) -> bool:
        """Whether the configured model's gradient agrees with central differences in most directions.

        The meta-loss of a network with ReLUs has kinks; a direction that crosses one within
        every step tried says nothing, so the median decides.
        """
        return float(np.median(self.errors)) < LIMIT

    def lines(self) -> list[str]:
        """The report for people."""
        verdict = "exact" if self.exact else "NOT exact"
        if self.stop_grad:
            verdict += " (--stop_grad drops the second derivatives on purpose)"
        return [
            f"relative error against central differences, {len(self.errors)} directions: "
            f"median {np.median(self.errors):.1e}, largest {max(self.errors):.1e}",
            f"relative error of first order: {self.first_order_error:.1e}",
            f"share of the gradient that second order contributes: {100 * self.second_order_share:.3g} %",
            f"The meta-gradient is {verdict}; the limit is {LIMIT:.0e}.",
        ]


def check_gradients(
    model: MAML, weights: Weights, episodes: Episodes, directions: int = DIRECTIONS, seed: int = 0
) -> GradientReport:
    """Compares `model.meta_gradient` with central differences of its meta-loss in random directions.

    Args:
        model: in float64.
        weights: θ.
        episodes: a few tasks; the cost grows with their number.
        directions: how many, each random in all weights.
        seed: of the directions.

    Raises:
        ValueError: the model is not in float64, where differences this small mean nothing.
    """
    if model.config.dtype != "float64":
        raise ValueError(f"the model computes in {model.config.dtype}, and this needs float64")
    meta_gradient = tf.function(model.meta_gradient, autograph=False)
    first_order = _with_stop_grad(model, True)
    exact = _with_stop_grad(model, False) if model.config.stop_grad else model

    @tf.function(autograph=False)
    def meta_loss(weights: Weights) -> tf.Tensor:
        outcome = model.task_metalearn(weights, episodes, model.config.num_updates)
        return tf.reduce_mean(outcome.lossesb[-1])

    _, gradient = meta_gradient(weights, episodes)
    _, first = tf.function(first_order.meta_gradient, autograph=False)(weights, episodes)
    whole = gradient if exact is model else tf.function(exact.meta_gradient, autograph=False)(weights, episodes)[1]
    rng = np.random.default_rng(seed)
    errors, first_errors = [], []
    for _ in range(directions):
        # Of the same length in every weight, so that no weight hides behind another.
        direction = {name: _unit(rng, whole[name].numpy()) for name in weights}
        differences = [_central(meta_loss, weights, direction, step) for step in STEPS]
        errors.append(_best(differences, _along(gradient, direction)))
        first_errors.append(_best(differences, _along(first, direction)))
    difference = {name: whole[name] - first[name] for name in whole}
    share = float(tf.linalg.global_norm(list(difference.values())) / tf.linalg.global_norm(list(whole.values())))
    return GradientReport(errors, max(first_errors), share, model.config.stop_grad)


def _with_stop_grad(model: MAML, stop_grad: bool) -> MAML:
    return MAML(dataclasses.replace(model.config, stop_grad=stop_grad), model.network)


def _unit(rng: np.random.Generator, gradient: np.ndarray) -> np.ndarray:
    """A random direction of unit length that leans towards the gradient, so that the derivative is not near zero."""
    noise = rng.normal(size=gradient.shape)
    noise /= np.linalg.norm(noise)
    norm = np.linalg.norm(gradient)
    leaning = noise / 2 + (gradient / norm if norm > 0 else 0)
    return leaning / np.linalg.norm(leaning)


def _central(loss, weights: Weights, direction: dict[str, np.ndarray], step: float) -> float:
    """(L(θ + h d) − L(θ − h d)) / 2h."""
    ahead = {name: weight + step * direction[name] for name, weight in weights.items()}
    behind = {name: weight - step * direction[name] for name, weight in weights.items()}
    return float((loss(ahead) - loss(behind)) / (2 * step))


def _along(gradient: Weights, direction: dict[str, np.ndarray]) -> float:
    return float(sum(np.sum(gradient[name].numpy() * direction[name]) for name in direction))


def _best(differences: list[float], derivative: float) -> float:
    return min(abs(difference - derivative) / abs(difference) for difference in differences)
