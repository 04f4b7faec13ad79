"""Is the meta-gradient of this very model exact? Compared with central differences in float64.

Central differences know nothing of tapes, closed forms or kernels: they evaluate the meta-loss,
and only that, at points around θ.

What makes them hard is that the meta-loss of a network with ReLUs or max pooling is not even
continuous. Where a unit switches, the inner gradient jumps, the adapted weights with it, and so
does the loss; a difference across such a jump grows without bound as its step shrinks. The steps
must be shorter than the way to the nearest jump, and long enough that rounding does not matter.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from maml.data_generator import Episodes
from maml.maml import MAML
from maml.models.protocol import Weights

TASKS = 2  # enough for a proof; the cost grows with them
DIRECTIONS = 4
STEPS = (1e-7, 1e-8, 1e-9)  # lengths in each weight
SMOOTH = 1e-4  # neighboring steps that agree this well have met no jump
LIMIT = 1e-5  # of the relative error; rounding made up to 6e-7 on the paper's networks


class GradientReport(NamedTuple):
    """What the comparison found.

    errors: |g·d − D| of the directions d that could be measured, D the central difference, in parts
        of the root mean square of D.
    first_order_error: the largest such error of the first-order gradient.
    second_order_share: ‖g − g₁‖ / ‖g‖, g the exact and g₁ the first-order gradient.
    stop_grad: whether the model is configured to be first-order.
    at_jumps: directions that were left out, because the loss jumps within every step.
    """

    errors: list[float]
    first_order_error: float
    second_order_share: float
    stop_grad: bool
    at_jumps: int

    @property
    def exact(self) -> bool:
        """Whether at least half of the directions could be measured, and the gradient is right in all of these."""
        return len(self.errors) >= max(1, self.at_jumps) and max(self.errors) < LIMIT

    def lines(self) -> list[str]:
        """The report for people."""
        verdict = "exact" if self.exact else "NOT exact"
        if self.stop_grad:
            verdict += " (--stop_grad drops the second derivatives on purpose)"
        measured = f"relative error against central differences, {len(self.errors)} directions: "
        if self.errors:
            measured += f"median {np.median(self.errors):.1e}, largest {max(self.errors):.1e}"
        left_out = (
            [f"left out: {self.at_jumps} directions along which the loss jumps too near"] if self.at_jumps else []
        )
        return [
            measured,
            *left_out,
            f"relative error of first order: {self.first_order_error:.1e}",
            f"share of the gradient that second order contributes: {100 * self.second_order_share:.3g} %",
            f"The meta-gradient is {verdict}; the limit is {LIMIT:.0e}.",
        ]


def check_gradients(
    model: MAML, weights: Weights, episodes: Episodes, directions: int = DIRECTIONS, seed: int = 0
) -> GradientReport:
    """Compares the model's meta-gradient with central differences of its meta-loss in random directions.

    A direction has the same length in every weight, so that none hides behind another.

    Args:
        model: in float64.
        weights: θ.
        episodes: a few tasks; the cost grows with their number.
        directions: how many.
        seed: of the directions.

    Raises:
        ValueError: the model is not in float64, where differences this small mean nothing.
    """
    if model.config.dtype != "float64":
        raise ValueError(f"the model computes in {model.config.dtype}, and this needs float64")

    @tf.function(autograph=False)
    def meta_loss(weights: Weights) -> tf.Tensor:
        return tf.reduce_mean([model.meta_loss(weights, task) for task in episodes.tasks()])

    exact, first = (_meta_gradient(model, stop_grad, weights, episodes) for stop_grad in (False, True))
    gradient = first if model.config.stop_grad else exact
    rng = np.random.default_rng(seed)
    slopes, derivatives, at_jumps = [], [], 0
    for _ in tqdm(range(directions), "central differences", unit="direction", disable=None, leave=False):
        direction = {name: _unit(rng.normal(size=weight.shape)) for name, weight in weights.items()}
        derivative = central_difference(lambda point: float(meta_loss(point)), weights, direction)
        if derivative is None:
            at_jumps += 1
            continue
        derivatives.append(derivative)
        slopes.append([_dot(gradient, direction), _dot(first, direction)])
    errors, first_errors = _relative_errors(np.array(slopes).reshape(-1, 2), np.array(derivatives))
    difference = {name: exact[name] - first[name] for name in exact}
    share = np.sqrt(_dot(difference, difference) / _dot(exact, exact))
    return GradientReport(errors, max(first_errors, default=np.nan), float(share), model.config.stop_grad, at_jumps)


def central_difference(
    loss: Callable[[dict], float], weights: Weights, direction: dict[str, np.ndarray]
) -> float | None:
    """(L(θ + h·d) − L(θ − h·d)) / 2h, with the longest step h that no jump spoils.

    That is the first of `STEPS` with which the next shorter one agrees: across a jump the two would
    differ tenfold. The gradient to be checked has no part in the choice.

    Returns:
        The derivative along d, or None where no two steps agree.
    """
    longer = None
    for step in STEPS:
        ahead, behind = (
            loss({name: weight + sign * step * direction[name] for name, weight in weights.items()}) for sign in (1, -1)
        )
        shorter = (ahead - behind) / (2 * step)
        if longer is not None and abs(longer - shorter) < SMOOTH * abs(shorter):
            return longer
        longer = shorter
    return None


def _meta_gradient(model: MAML, stop_grad: bool, weights: Weights, episodes: Episodes) -> dict[str, np.ndarray]:
    """The model's meta-gradient, with second derivatives or without."""
    changes = {"stop_grad": stop_grad, "first_order_to_second_order_epoch": -1}
    variant = model.of(model.config.replace(**changes))
    _, gradient = tf.function(variant.meta_gradient, autograph=False)(weights, episodes, 0)
    return {name: slope.numpy() for name, slope in gradient.items()}


def _relative_errors(slopes: np.ndarray, derivatives: np.ndarray) -> list[list[float]]:
    """Errors of each column of slopes [directions, columns], in parts of the derivatives' root mean square."""
    scale = np.sqrt(np.mean(derivatives**2)) if len(derivatives) else 1.0
    return (np.abs(slopes - derivatives[:, None]) / scale).T.tolist()


def _unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array)


def _dot(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return float(sum(np.sum(a[name] * b[name]) for name in b))
