"""What the page computes: the probabilities of a drawing before adaptation and after every inner step."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from maml.algorithms import ensemble
from maml.errors import UserError
from maml.learner import Learner


def probabilities(
    learner: Learner, images: np.ndarray, labels: Sequence[int], query: np.ndarray, steps: int
) -> np.ndarray:
    """Of one query image, before adaptation and after each of `steps` steps, [steps + 1, classes].

    Fewer classes than the network has outputs may be drawn: the outputs that no class has are left out of the softmax.

    Args:
        images: of the support set, [n, height, width, channels].
        labels: a class for each, from 0.
        query: [height, width, channels].

    Raises:
        UserError: there are fewer than two classes, or more than the network has outputs.
    """
    classes = max(labels, default=-1) + 1
    if classes < 2 or (learner.ways and classes > learner.ways):
        limit = f"2 to {learner.ways}" if learner.ways else "at least 2"
        raise UserError(f"{classes} classes are drawn, and this network tells {limit} apart")
    outputs = learner.ways or classes
    support = learner.inputs(images, "images")
    onehot = tf.one_hot(list(labels), outputs, dtype=learner.config.dtype)
    inputb = learner.inputs(query[None], "query")
    if not learner.config.adapts:
        steps = 0
    found = []
    for step in range(steps + 1):
        adapted = ensemble.adapt(learner.model, learner.weights, support, onehot, step)
        logits = ensemble.predict(learner.model, adapted, support, inputb)[0, :classes]
        found.append(tf.nn.softmax(logits).numpy())
    return np.array(found)


def curve(learner: Learner, x: Sequence[float], y: Sequence[float], steps: Sequence[int], at: np.ndarray) -> list:
    """What a sinusoid network, adapted to points (x, y), predicts at `at`: [len(at)] for each number of steps."""
    points, values = np.array(x)[:, None], np.array(y)[:, None]
    return [learner.adapt(points, values, num_updates=count).predict(at[:, None])[:, 0] for count in steps]
