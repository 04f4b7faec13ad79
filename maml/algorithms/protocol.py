"""The interface of an algorithm to training, testing and checkpoints: small, so that algorithms are easy to add."""

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes, Part
from maml.models.protocol import Model, Weights


class Column(NamedTuple):
    """One of the values measured on every task.

    label: its name in the table of a test.
    key: its name in the .csv of a test.
    tag: its name in TensorBoard, after that of the measure.
    """

    label: str
    key: str
    tag: str


class Algorithm(abc.ABC):
    """A learner; `maml.algorithms.build` makes the one that a config describes.

    Its state is a NamedTuple of tensors and dicts of tensors. `state.weights` is what is meta-learned; the rest is
    private to the algorithm.

    config: the run's setting.
    model: the model that it meta-learns.
    """

    config: Config
    model: Model

    @abc.abstractmethod
    def init_state(self) -> Any:
        """The state before the first update, determined by the config's seed."""

    @abc.abstractmethod
    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The mean loss of a batch of training tasks, [], and by weight its gradient, or what `apply` takes for it.

        In float64, the mean does not depend on how the batch is divided over replicas; see `maml.parallel`.

        Args:
            episodes: the tasks, with a leading task axis.
            iteration: the number of updates before this one, [].
        """

    def of_part(self, part: Part) -> "Algorithm":
        """The learner for one part of each batch: itself, unless `gradient` depends on a task's position in the batch.

        The mean of the parts' losses and gradients must be that of the whole batch.
        """
        return self

    @abc.abstractmethod
    def apply(self, state: Any, gradients: Weights, iteration: tf.Tensor | int) -> Any:
        """The state after an update with these gradients."""

    @abc.abstractmethod
    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Any:
        """What is learned from one task's support set, of any size, balanced or not; passed only to `predict`.

        Args:
            inputa, labela: [examples, …].
        """

    @abc.abstractmethod
    def predict(self, adapted: Any, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of the same task's query set `inputb`, [examples, dim_output].

        Args:
            adapted: what `adapt` returned for the support set `inputa`.
        """

    @abc.abstractmethod
    def evaluate(self, weights: Any, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """The measures "loss" and, for classification, "accuracy" of every task: [tasks, columns].

        Args:
            weights: what was meta-learned; for some algorithms also a list, those of several checkpoints (an ensemble).
            num_updates: inner steps, for algorithms that have them.
        """

    @abc.abstractmethod
    def columns(self, num_updates: int) -> list[Column]:
        """The columns of what `evaluate` returns."""

    @property
    @abc.abstractmethod
    def reported(self) -> tuple[int, ...]:
        """The columns printed during training; the last one determines the best checkpoint."""

    def adaptation(self, weights: Weights, episodes: Episodes) -> Iterator[tuple[str, Any]]:
        """The intermediate results of an update, in order, as (name, tensors): to find the first that is not finite."""
        return iter(())

    def charts(self, weights: Weights, iteration: int) -> dict[str, float]:
        """Further TensorBoard curves, by tag: a few numbers that are learned or scheduled."""
        return {}

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The name of each weight in checkpoints."""
        return self.model.checkpoint_names(weights)

    @property
    def compiled(self) -> bool:
        """Whether to compile its computations with XLA."""
        return self.model.compiled
