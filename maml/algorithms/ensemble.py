"""Several checkpoints of one run as one learner: each adapts by itself, and their outputs are averaged."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from maml.models.protocol import Weights


def adapt(model: Any, weights: Weights | Sequence[Weights], inputa: Any, labela: Any, num_updates: int) -> Any:
    """What `model.adapt` learns of one task's support set; a list of that, from the weights of several checkpoints."""
    if isinstance(weights, dict):
        return model.adapt(weights, inputa, labela, num_updates)
    return [model.adapt(member, inputa, labela, num_updates) for member in weights]


def predict(model: Any, adapted: Any, inputa: Any, inputb: Any) -> Any:
    """The model's outputs of one task's query set; the mean of them, where `adapt` made a list."""
    if not isinstance(adapted, list):
        return model.predict(adapted, inputa, inputb)
    return mean([model.predict(member, inputa, inputb) for member in adapted])


def best(weights: Weights | Sequence[Weights]) -> Weights:
    """Of several checkpoints those that did best in validation, which come last."""
    return weights if isinstance(weights, dict) else weights[-1]


def mean(outputs: Sequence[Any]) -> Any:
    """The mean of several structures of tensors, entry by entry."""
    return tf.nest.map_structure(lambda *each: tf.add_n(each) / len(each) if len(each) > 1 else each[0], *outputs)


def variables(weights: Weights | Sequence[Weights]) -> tuple[list[dict[str, tf.Variable]], Callable[[], Any]]:
    """Variables to be saved, a dict for each checkpoint, and a function that reads them as the weights they are of."""
    members = [weights] if isinstance(weights, dict) else weights
    kept = [{name.replace("/", "_"): tf.Variable(w, trainable=False) for name, w in each.items()} for each in members]

    def read() -> Any:
        found = [
            {name: variable.read_value() for name, variable in zip(each, own.values(), strict=True)}
            for each, own in zip(members, kept, strict=True)
        ]
        return found[0] if isinstance(weights, dict) else found

    return kept, read
