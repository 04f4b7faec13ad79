"""The iterations of a training, many to a compiled call: episodes, update, and what the summaries measure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from maml.algorithms.protocol import Algorithm
from maml.data_generator import DataGenerator, Episodes
from maml.models.protocol import Weights
from maml.training.diagnosis import all_finite

MOST_SUMMARIES = 10  # in a call


class Updated(NamedTuple):
    """What some iterations made of a state.

    loss: of the last update, before it; 0 if there was none.
    finite: whether every loss and everything in the new state is.
    measures: what `Algorithm.evaluate` returned at every summary on the way, with a leading axis of
        MOST_SUMMARIES entries, zeros behind the last; {} if there are no summaries.
    """

    state: Any
    loss: tf.Tensor
    finite: tf.Tensor
    measures: dict[str, tf.Tensor]


def update(model: Algorithm, state: Any, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[Any, tf.Tensor]:
    """One update on a batch of training tasks: the new state, and the loss before the update, []."""
    loss, gradients = model.gradient(state.weights, episodes, iteration)
    return model.apply(state, gradients, iteration), loss


def make_update(
    model: Algorithm, data: DataGenerator, summary_interval: int = 0
) -> Callable[[Any, tf.Tensor, tf.Tensor], Updated]:
    """The compiled `run(state, first, count)`: `count` iterations from `first` on.

    Episodes are sampled inside, so nothing but the state goes in and out. With a summary interval
    the tasks of the coming update are measured, as in the official summaries, each time
    the iterations done are a multiple of it, at the end too and also if `count` is 0.

    Args:
        summary_interval: iterations between summaries, at most MOST_SUMMARIES of which may fall into a call;
            0: none, for the bare update.

    Returns:
        The function; `first`, the iterations done before, and `count` are int32 [].
    """
    config = model.config
    # XLA would make labels anew in every kernel that reads them, if they were made in the same iteration.
    ahead = model.compiled

    def episodes_of(iteration: tf.Tensor) -> Episodes:
        return data.episodes("train", iteration, config.meta_batch_size)

    def loop(first: tf.Tensor, last: tf.Tensor, drawn: Any, state: Any) -> tuple:
        """Iterations `first` to `last` − 1: the episodes of `last`, the state, the last loss, whether all is finite."""

        def body(iteration: tf.Tensor, drawn: Any, state: Any, loss: tf.Tensor, finite: tf.Tensor) -> tuple:
            state, loss = update(model, state, drawn if ahead else episodes_of(iteration), iteration)
            drawn = episodes_of(iteration + 1) if ahead else ()
            return iteration + 1, drawn, state, loss, finite & tf.math.is_finite(loss)

        start = (first, drawn, state, tf.constant(0.0, config.dtype), tf.constant(True))
        return tf.while_loop(lambda iteration, *_: iteration < last, body, start, parallel_iterations=1)[1:]

    def loop_with_summaries(first: tf.Tensor, last: tf.Tensor, drawn: Any, state: Any) -> tuple:
        """The same from summary to summary, and the measures."""

        def body(summaries, iteration, drawn, state, loss, finite, measures):
            due = (iteration // summary_interval + 1) * summary_interval
            end = tf.minimum(last, due)
            drawn, state, loss, ok = loop(iteration, end, drawn, state)

            def measured() -> dict[str, tf.Tensor]:
                episodes = drawn if ahead else episodes_of(end)
                found = model.evaluate(state.weights, episodes, config.evaluation_updates)
                entry = tf.equal(tf.range(MOST_SUMMARIES), summaries)[:, None, None]
                return {name: tf.where(entry, values, measures[name]) for name, values in found.items()}

            measures = tf.cond(tf.equal(end % summary_interval, 0), measured, lambda: measures)
            return summaries + 1, end, drawn, state, loss, finite & ok, measures

        shape = [MOST_SUMMARIES, config.meta_batch_size, len(model.columns(config.evaluation_updates))]
        names = ("loss", "accuracy") if config.classification else ("loss",)
        measures = {name: tf.zeros(shape, config.dtype) for name in names}
        zero, true = tf.constant(0), tf.constant(True)
        start = (zero, first, drawn, state, tf.constant(0.0, config.dtype), true, measures)
        return tf.while_loop(
            lambda summaries, iteration, *_: tf.equal(summaries, 0) | (iteration < last),
            body,
            start,
            parallel_iterations=1,
        )[2:]

    @tf.function(jit_compile=model.compiled, autograph=False)
    def run(state: Any, first: tf.Tensor, count: tf.Tensor) -> Updated:
        drawn = episodes_of(first) if ahead else ()
        if summary_interval:
            _, state, loss, finite, measures = loop_with_summaries(first, first + count, drawn, state)
        else:
            (_, state, loss, finite), measures = loop(first, first + count, drawn, state), {}
        # A weight or a mean of Adam's that is not finite never becomes so again: one look at the end sees it.
        return Updated(state, loss, finite & all_finite(state), measures)

    return run


def make_gradient(model: Algorithm, data: DataGenerator) -> Callable[[Weights, tf.Tensor], Weights]:
    """The compiled `gradient(weights, iteration)` of an iteration's loss, before clipping and Adam."""

    @tf.function(jit_compile=model.compiled, autograph=False)
    def gradient(weights: Weights, iteration: tf.Tensor) -> Weights:
        episodes = data.episodes("train", iteration, model.config.meta_batch_size)
        return model.gradient(weights, episodes, iteration)[1]

    return gradient
