"""Which quantity of an update is the first that is not finite."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from maml.algorithms.protocol import Algorithm
from maml.data_generator import Episodes
from maml.parallel import rounded


def all_finite(tensors) -> tf.Tensor:
    """Whether every number in a structure of tensors is finite: bool []."""
    numbers = [tensor for tensor in tf.nest.flatten(tensors) if tensor.dtype.is_floating]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in numbers])


def first_non_finite(model: Algorithm, state: Any, episodes: Episodes, iteration: int) -> str:
    """The name of the first quantity of this update that is not finite, such as "gradient of conv2"."""
    for name, tensor in _quantities(model, state, episodes, iteration):
        if not all_finite(tensor):
            return name
    return "update"  # compiled code rounds differently, so that an overflow at the very edge may not come again


def _quantities(model: Algorithm, state: Any, episodes: Episodes, iteration: int) -> Iterator[tuple[str, Any]]:
    """What an update computes, in its order: (name, tensors)."""
    pretraining = iteration < model.config.pretraining
    for name, weight in state.weights.items():
        yield f"weight {name} before the update", weight
    if not pretraining:
        yield from model.adaptation(state.weights, episodes)
    loss, gradients = rounded(model.gradient(state.weights, episodes, iteration), state.weights)
    yield "support loss before adaptation" if pretraining else "loss", loss
    for name, gradient in gradients.items():
        yield f"gradient of {name}", gradient
    updated = model.apply(state, gradients, iteration)
    for optimizer in updated[1:]:
        for name, mean in getattr(optimizer, "v", {}).items():
            yield f"squared gradient of {name}", mean
    for name, weight in updated.weights.items():
        yield f"weight {name} after the update", weight
