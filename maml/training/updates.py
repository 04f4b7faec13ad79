"""The iterations of a training, many to a compiled call: episodes, update, and what the summaries measure."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from maml.algorithms.protocol import Algorithm
from maml.data_generator import Episodes, Part, TaskSource
from maml.devices import replicas
from maml.models.protocol import Weights
from maml.parallel import exact, rounded
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
    loss, gradients = rounded(model.gradient(state.weights, episodes, iteration), state.weights)
    return model.apply(state, gradients, iteration), loss


def make_update(
    model: Algorithm, data: TaskSource, summary_interval: int = 0
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
    loop = _Loop(model, data, summary_interval)

    # XLA's code cannot exchange gradients: with several replicas it compiles what each computes by itself.
    compile_all = model.compiled and replicas.count() == 1
    # A partial has no code object, by which TensorFlow would count the tracings of all trainings in a process together.
    return tf.function(partial(loop.run), jit_compile=compile_all, autograph=False)


def batch_gradient(
    model: Algorithm, data: TaskSource, weights: Weights, iteration: tf.Tensor, drawn: Any = ()
) -> tuple[tf.Tensor, Weights]:
    """The mean loss of an iteration's batch, [], and its gradient; each replica computes those of its part.

    Args:
        drawn: the batch, where it was drawn before.
    """
    if drawn:
        return rounded(model.gradient(weights, drawn, iteration), weights)
    return rounded(replicas.mean(lambda part: part_gradient(model, data, weights, iteration, part)), weights)


def by_itself(model: Algorithm, compute: Callable[[Weights, tf.Tensor, Part], Any]) -> Callable[..., Any]:
    """What is computed of a part of a batch, in a function of its own.

    XLA compiles it if it cannot compile the loop around it; see `make_update`. Otherwise TensorFlow optimizes it by
    itself: the same operations, in the same order, whatever the parts.
    """
    if model.compiled and replicas.count() == 1:
        return compute

    @tf.function(jit_compile=model.compiled, autograph=False)
    def of_part(weights: Weights, iteration: tf.Tensor, number: tf.Tensor, parts: int) -> Any:
        return compute(weights, iteration, Part(number, parts))

    return lambda weights, iteration, part: of_part(weights, iteration, *part)


def part_gradient(
    model: Algorithm, data: TaskSource, weights: Weights, iteration: tf.Tensor, part: Part
) -> tuple[tf.Tensor, Weights]:
    """The mean loss of a part of an iteration's batch, [], and its gradient, in float64; see `maml.parallel`.

    With `--accumulate` it is computed piece by piece.
    """
    tasks, pieces = model.config.meta_batch_size, model.config.accumulate

    def compute(weights: Weights, iteration: tf.Tensor, part: Part) -> tuple[tf.Tensor, Weights]:
        episodes = data.episodes("train", iteration, tasks, part)
        return exact(model.of_part(part).gradient(weights, episodes, iteration))

    of = by_itself(model, compute)
    if pieces == 1:
        return of(weights, iteration, part)

    def body(piece: tf.Tensor, sums: Any) -> tuple:
        return piece + 1, tf.nest.map_structure(tf.add, sums, of(weights, iteration, part.piece(piece, pieces)))

    nothing = tf.nest.map_structure(tf.zeros_like, exact((tf.zeros([]), weights)))
    sums = tf.while_loop(lambda piece, _: piece < pieces, body, (tf.constant(0), nothing), parallel_iterations=1)[1]
    return tf.nest.map_structure(lambda total: total / pieces, sums)


class _Loop:
    """The two loops that `make_update` compiles."""

    def __init__(self, model: Algorithm, data: TaskSource, summary_interval: int):
        self.model, self.data, self.summary_interval = model, data, summary_interval
        self.config = model.config

    def episodes(self, iteration: tf.Tensor) -> Episodes:
        return self.data.episodes("train", iteration, self.config.meta_batch_size)

    def ahead(self, iteration: tf.Tensor) -> Any:
        """The episodes of an iteration where they are drawn in the iteration before, else ().

        XLA would make labels anew in every kernel that reads them, if they were made in the same iteration.
        """
        whole = replicas.count() == self.config.accumulate == 1
        return self.episodes(iteration) if self.model.compiled and whole else ()

    def run(self, state: Any, first: tf.Tensor, count: tf.Tensor) -> Updated:
        drawn = self.ahead(first)
        if self.summary_interval:
            _, state, loss, finite, measures = self.updates_and_summaries(first, first + count, drawn, state)
        else:
            (_, state, loss, finite), measures = self.updates(first, first + count, drawn, state), {}
        # A weight or a mean of Adam's that is not finite never becomes so again: one look at the end sees it.
        return Updated(state, loss, finite & all_finite(state), measures)

    def updates(self, first: tf.Tensor, last: tf.Tensor, drawn: Any, state: Any) -> tuple:
        """Iterations `first` to `last` − 1: the episodes of `last`, the state, the last loss, whether all is finite."""

        def body(iteration: tf.Tensor, drawn: Any, state: Any, loss: tf.Tensor, finite: tf.Tensor) -> tuple:
            loss, gradients = batch_gradient(self.model, self.data, state.weights, iteration, drawn)
            state = self.model.apply(state, gradients, iteration)
            return iteration + 1, self.ahead(iteration + 1), state, loss, finite & tf.math.is_finite(loss)

        start = (first, drawn, state, tf.constant(0.0, self.config.dtype), tf.constant(True))
        return tf.while_loop(lambda iteration, *_: iteration < last, body, start, parallel_iterations=1)[1:]

    def updates_and_summaries(self, first: tf.Tensor, last: tf.Tensor, drawn: Any, state: Any) -> tuple:
        """The same from summary to summary, and the measures."""

        def body(summaries, iteration, drawn, state, loss, finite, measures):
            due = (iteration // self.summary_interval + 1) * self.summary_interval
            end = tf.minimum(last, due)
            drawn, state, loss, ok = self.updates(iteration, end, drawn, state)
            measures = tf.cond(
                tf.equal(end % self.summary_interval, 0),
                lambda: self.entered(measures, summaries, state, end, drawn),
                lambda: measures,
            )
            return summaries + 1, end, drawn, state, loss, finite & ok, measures

        zero, true = tf.constant(0), tf.constant(True)
        start = (zero, first, drawn, state, tf.constant(0.0, self.config.dtype), true, self.no_measures())
        return tf.while_loop(
            lambda summaries, iteration, *_: tf.equal(summaries, 0) | (iteration < last),
            body,
            start,
            parallel_iterations=1,
        )[2:]

    def no_measures(self) -> dict[str, tf.Tensor]:
        columns = len(self.model.columns(self.config.evaluation_updates))
        zeros = tf.zeros([MOST_SUMMARIES, self.config.meta_batch_size, columns], self.config.dtype)
        return dict.fromkeys(("loss", "accuracy") if self.config.classification else ("loss",), zeros)

    def entered(
        self, measures: dict[str, tf.Tensor], summary: tf.Tensor, state: Any, iteration: tf.Tensor, drawn: Any
    ) -> dict[str, tf.Tensor]:
        """The measures, with those of the state on an iteration's episodes as entry `summary`."""
        found = self.measured(state.weights, iteration, drawn)
        entry = tf.equal(tf.range(MOST_SUMMARIES), summary)[:, None, None]
        return {name: tf.where(entry, values, measures[name]) for name, values in found.items()}

    def measured(self, weights: Weights, iteration: tf.Tensor, drawn: Any) -> dict[str, tf.Tensor]:
        """What `evaluate` measures on the episodes of an iteration, [meta_batch_size, columns] each."""
        if drawn:
            return self.model.evaluate(weights, drawn, self.config.evaluation_updates)
        of_part = by_itself(self.model, self.part_measured)
        return replicas.together(lambda part: of_part(weights, iteration, part))

    def part_measured(self, weights: Weights, iteration: tf.Tensor, part: Part) -> dict[str, tf.Tensor]:
        """The same of a part of the episodes; with `--accumulate` piece by piece."""
        config, steps, pieces = self.config, self.config.evaluation_updates, self.config.accumulate

        def of(part: Part) -> dict[str, tf.Tensor]:
            episodes = self.data.episodes("train", iteration, config.meta_batch_size, part)
            return self.model.evaluate(weights, episodes, steps)

        if pieces == 1:
            return of(part)
        shape = [config.meta_batch_size // part.parts, len(self.model.columns(steps))]
        like = {name: tf.TensorSpec([shape[0] // pieces, shape[1]], config.dtype) for name in self.no_measures()}
        each = tf.map_fn(
            lambda piece: of(part.piece(piece, pieces)),
            tf.range(pieces),
            fn_output_signature=like,
            parallel_iterations=1,
        )
        return {name: tf.reshape(values, shape) for name, values in each.items()}


def make_gradient(model: Algorithm, data: TaskSource) -> Callable[[Weights, tf.Tensor], Weights]:
    """The compiled `gradient(weights, iteration)` of an iteration's loss, before clipping and Adam."""

    @tf.function(jit_compile=model.compiled and replicas.count() == 1, autograph=False)
    def gradient(weights: Weights, iteration: tf.Tensor) -> Weights:
        return batch_gradient(model, data, weights, iteration)[1]

    return gradient
