"""Which quantity of an update is the first that is not finite."""

from collections.abc import Iterator

import tensorflow as tf

from maml.algorithms.protocol import Algorithm, TrainState
from maml.data_generator import Episodes
from maml.maml import MAML


def all_finite(tensors) -> tf.Tensor:
    """Whether every number in a structure of tensors is finite: bool []."""
    numbers = [tensor for tensor in tf.nest.flatten(tensors) if tensor.dtype.is_floating]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in numbers])


def first_non_finite(model: Algorithm, state: TrainState, episodes: Episodes, iteration: int) -> str:
    """The name of the first quantity of this update that is not finite, such as "gradient of conv2"."""
    for name, tensor in _quantities(model, state, episodes, iteration):
        if not all_finite(tensor):
            return name
    return "update"  # compiled code rounds differently, so that an overflow at the very edge may not come again


def _quantities(model: Algorithm, state: TrainState, episodes: Episodes, iteration: int) -> Iterator[tuple]:
    """What an update computes, in its order: (name, tensor)."""
    pretraining = iteration < model.config.pretraining
    lost = "support loss before adaptation" if pretraining else "loss"
    for name, weight in state.weights.items():
        yield f"weight {name} before the update", weight
    if isinstance(model, MAML) and not pretraining:
        steps = model.config.num_updates
        fast = state.weights
        for step in range(1, steps + 1):
            fast, _, losses = model.inner_step(fast, episodes.inputa, episodes.labela)
            yield f"support loss after inner step {step - 1}" if step > 1 else "support loss before adaptation", losses
            for name, weight in fast.items():
                yield f"weight {name} after inner step {step}", weight
        lost = f"query loss after inner step {steps}"
    loss, gradients = model.gradient(state.weights, episodes, iteration)
    yield lost, loss
    for name, gradient in gradients.items():
        yield f"gradient of {name}", gradient
    updated, _ = model.update(state, episodes, iteration)
    for name, mean in (updated.pretrain if pretraining else updated.metatrain).v.items():
        yield f"squared gradient of {name}", mean
    for name, weight in updated.weights.items():
        yield f"weight {name} after the update", weight
