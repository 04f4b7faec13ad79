"""The meta-gradient against central differences of the meta-loss, in float64.

The whole step is differentiated: network, normalization, every inner update and the query loss.
Its derivative along a line is (f(θ + h·d) − f(θ − h·d)) / 2h.

Inner gradients jump where a ReLU or a max switches, and so does the loss after an inner update:
across such a point the difference is no derivative, however small h is. Along the random directions
the test asserts that none switches between θ − h·d and θ + h·d; along single coordinates, with the
same h, the agreement itself shows it.
"""

import numpy as np
import pytest
import tensorflow as tf

from maml.maml import MAML
from maml.models.official import Weights
from tests.reference import Setting, find_nonsmooth, tasks_of
from tests.tiny import NETWORKS, NORMS, flatten, tiny_episodes, tiny_model, tiny_weights

TOLERANCE = 1e-6
STEPS = {1: 1e-6, 2: 1e-6, 5: 3e-7}  # h, by inner updates
DIRECTIONS = 2
COORDINATES = 2  # of every weight

ONE_STEP = [(network, norm, 1) for network in NETWORKS for norm in NORMS]
FIVE_STEPS = [("sinusoid", norm, 5) for norm in NORMS] + [
    ("fc", "batch_norm", 5),
    ("strided, mean head", "batch_norm", 5),
    ("strided, flat head", "None", 5),
    ("pooled, mean head", "layer_norm", 5),
    ("pooled, flat head", "batch_norm", 5),
]


class Line:
    """The meta-loss as a function of one flat vector, and its measured derivatives."""

    def __init__(self, model: MAML, weights: Weights, episodes):
        self.names = list(weights)
        self.shapes = [weights[name].shape for name in self.names]
        self.centre = flatten(weights, self.names)

        @tf.function(autograph=False)
        def loss(vector):
            weights = self.unflatten(vector)
            return tf.reduce_mean([model.meta_loss(weights, task) for task in episodes.tasks()])

        self._loss = loss

    def unflatten(self, vector) -> Weights:
        """The weights that a flat vector holds."""
        parts = tf.split(tf.convert_to_tensor(vector), [shape.num_elements() for shape in self.shapes])
        return {name: tf.reshape(part, shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def derivative(self, direction: np.ndarray) -> float:
        """Central difference along `direction`, as long as h."""
        ahead, behind = (float(self._loss(self.centre + sign * direction)) for sign in (1, -1))
        return (ahead - behind) / 2


@pytest.mark.parametrize(("network", "norm", "num_updates"), ONE_STEP + FIVE_STEPS)
def test_meta_gradient_equals_central_differences(network, norm, num_updates):
    model = tiny_model(network, norm, num_updates=num_updates)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2, tasks=2 if num_updates == 1 else 1)
    _, gradient = model.gradient(weights, episodes, 0)
    check(model, weights, episodes, gradient)


@pytest.mark.parametrize("network", ["strided, mean head", "pooled, flat head"])
def test_meta_gradient_by_the_kernels_of_a_graph_equals_central_differences(network):
    """Eagerly the plain forms are taken."""
    model = tiny_model(network, "batch_norm", num_updates=2)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2, tasks=1)
    _, gradient = tf.function(model.gradient, autograph=False)(weights, episodes, 0)
    check(model, weights, episodes, gradient)


def check(model: MAML, weights: Weights, episodes, gradient: Weights) -> None:
    """Compares a meta-gradient with central differences along directions and coordinates."""
    num_updates = model.config.num_updates
    line = Line(model, weights, episodes)
    slope = flatten(gradient, line.names)
    rng = np.random.default_rng(3)

    step, setting, tasks = STEPS[num_updates], Setting.of(model), tasks_of(episodes)
    nonsmooth = find_nonsmooth(setting, weights, tasks, num_updates)
    for _ in range(DIRECTIONS):
        direction = rng.normal(size=slope.shape)
        direction *= step / np.linalg.norm(direction)
        for sign in (-1, 1):
            there = line.unflatten(line.centre + sign * direction)
            smooth = find_nonsmooth(setting, there, tasks, num_updates).same_as(nonsmooth)
            assert smooth, "a unit switches: no derivative to compare with"
        expected = slope @ direction
        assert abs(line.derivative(direction) - expected) < TOLERANCE * abs(expected)

    start = 0
    for name, shape in zip(line.names, line.shapes, strict=True):
        size = shape.num_elements()
        # Biases before batch-norm have no gradient: an error counts against the whole gradient there.
        scale = max(np.abs(gradient[name]).max(), 1e-2 * np.abs(slope).max())
        for coordinate in rng.choice(size, min(COORDINATES, size), replace=False):
            direction = np.zeros_like(slope)
            direction[start + coordinate] = step
            error = abs(line.derivative(direction) - step * slope[start + coordinate])
            assert error < TOLERANCE * step * scale, (name, coordinate)
        start += size
