"""Whether the user's model, loss and tasks fit each other, tried on the first task before a training begins."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from maml.errors import UserError, one_line
from maml.models.protocol import Weights
from maml.own.algorithm import LOSSES, OwnMAML
from maml.own.tasks import OwnTasks

FLOATS = ("float16", "bfloat16", "float32", "float64")


def check_loss(loss: Any) -> None:
    """Raises UserError if it is neither the name of a loss nor a function."""
    if loss not in LOSSES if isinstance(loss, str) else not callable(loss):
        raise UserError(f"loss={loss!r}: must be mse, xent, or a function of (outputs, y)")


def check_model(learner: OwnMAML, data: OwnTasks, loss: Any) -> None:
    """Runs the model once on the first task, so that what does not fit is said in one line.

    Raises:
        UserError: the model, the loss and the task do not fit each other.
    """
    weights, model = learner.init_state().weights, learner.model
    for name, x in (("support x", data.like[0]), ("query x", data.like[2])):
        with taken(x, name):
            outputs = model.apply(weights, tf.nest.map_structure(tf.constant, x))
        _check_outputs(outputs, loss, learner.config.dtype)
    if loss == "xent":
        data.one_hot = outputs.shape[-1]
        split, like = next(iter(data.draws)), data.like
        data.like = None
        data.like = data._prepared(split, 0, like)
    for name, place in (("support y", 0), ("query y", 2)):
        x, y = (tf.nest.map_structure(tf.constant, part) for part in data.like[place : place + 2])
        _check_value(learner, weights, x, y, name)


def _check_value(learner: OwnMAML, weights: Weights, x: Any, y: Any, name: str) -> None:
    """Raises UserError if the loss of a set is not one number that depends on the weights, or no graph computes it."""

    def value_of(weights: Weights) -> Any:
        return learner.loss_func(learner.model.apply(weights, x), y)

    try:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = value_of(weights)
        tf.function(value_of, autograph=False).get_concrete_function(weights)
    except Exception as error:  # of whatever kind the user's loss raises
        reason = one_line(error, 300)
        raise UserError(f"the loss does not take the model's outputs and {name}: {reason}") from error
    if not tf.is_tensor(value):
        raise UserError(f"the loss returns {type(value).__name__}, needed a tensor that depends on the outputs")
    if value.shape != ():
        raise UserError(f"the loss returns the shape {list(value.shape)}, needed one number: take its mean")
    if all(slope is None for slope in tape.gradient(value, weights).values()):
        raise UserError(f"the loss of {name} does not depend on any weight: nothing could be learned")


@contextlib.contextmanager
def taken(x: Any, name: str) -> Iterator[None]:
    """Raises UserError if the model, which is called in the block, does not take its inputs x."""
    try:
        yield
    except Exception as error:  # of whatever kind the user's model raises
        shapes = [list(array.shape) for array in tf.nest.flatten(x)]
        reason = one_line(error, 300)
        raise UserError(f"the model does not take {name} of the shape {shapes}: {reason}") from error


def _check_outputs(outputs: Any, loss: Any, dtype: str) -> None:
    """Raises UserError if a model's outputs are not what the loss takes, or of another precision than the run."""
    if not all(map(tf.is_tensor, tf.nest.flatten(outputs))) or (loss in LOSSES and not tf.is_tensor(outputs)):
        needed = f"one tensor for loss={loss!r}" if loss in LOSSES else "tensors"
        raise UserError(f"the model returns {type(outputs).__name__}, needed {needed}")
    if loss == "xent":
        _check_logits(outputs)
    found = {tensor.dtype.name for tensor in tf.nest.flatten(outputs)}.intersection(FLOATS)
    if other := sorted(found - {dtype}):
        way_out = f"give dtype={other[0]!r}, or " if other[0] in ("float32", "float64") else ""
        raise UserError(f"the model computes in {other[0]}, and the run in {dtype}: {way_out}build it in {dtype}")


def _check_logits(outputs: tf.Tensor) -> None:
    sums = tf.reduce_sum(outputs, -1).numpy()
    if (outputs.numpy() >= 0).all() and np.allclose(sums, 1, atol=1e-4):
        raise UserError('the outputs are probabilities, and loss="xent" takes logits: leave the softmax out')
