"""What training, testing and checkpoints ask of an algorithm. On one screen, so that another one is easily added."""

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes, Part
from maml.models.protocol import Model, Weights


class Column(NamedTuple):
    """One of the things that are measured on every task.

    label: in the table of a test.
    key: in the .csv of a test.
    tag: in TensorBoard, after the measure's name.
    """

    label: str
    key: str
    tag: str


class Algorithm(abc.ABC):
    """A learner: `maml.algorithms.build` makes that of a config.

    Its state is a NamedTuple of tensors and dicts of tensors. `state.weights` is what is meta-learned; what else is in
    it is the algorithm's own business.

    config: the run's setting.
    model: what it meta-learns.
    """

    config: Config
    model: Model

    @abc.abstractmethod
    def init_state(self) -> Any:
        """The state before the first update, a function of the config's seed."""

    @abc.abstractmethod
    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The mean loss of a batch of training tasks, [], and what is to be done about it, by weight.

        Args:
            episodes: the tasks, with a leading task axis.
            iteration: how many updates came before, [].
        """

    def of_part(self, part: Part) -> "Algorithm":
        """The learner of a part of each batch: itself, unless a task's place in the batch matters to `gradient`.

        The mean over the parts of what their learners find as loss and gradient is that of the whole batch.
        """
        return self

    @abc.abstractmethod
    def apply(self, state: Any, gradients: Weights, iteration: tf.Tensor | int) -> Any:
        """The state after the update by these gradients."""

    @abc.abstractmethod
    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Any:
        """What is learned from one task's support set, of any size, balanced or not; only `predict` reads it.

        Args:
            inputa, labela: [examples, …].
        """

    @abc.abstractmethod
    def predict(self, adapted: Any, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of the same task's query set `inputb`, [examples, dim_output].

        Args:
            adapted: what `adapt` made of the support set `inputa`.
        """

    @abc.abstractmethod
    def evaluate(self, weights: Any, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """The measures "loss" and, for classification, "accuracy" of every task: [tasks, columns].

        Args:
            weights: what was meta-learned; some algorithms take those of several checkpoints, an ensemble.
            num_updates: inner steps, where the algorithm takes as many as it is asked for.
        """

    @abc.abstractmethod
    def columns(self, num_updates: int) -> list[Column]:
        """What the columns of `evaluate` are."""

    @property
    @abc.abstractmethod
    def reported(self) -> tuple[int, ...]:
        """The columns that the lines printed in training show; the last chooses the best checkpoint."""

    def adaptation(self, weights: Weights, episodes: Episodes) -> Iterator[tuple[str, Any]]:
        """What a training update computes inside, in its order, as (name, tensors): for finding what is not finite."""
        return iter(())

    def charts(self, weights: Weights, iteration: int) -> dict[str, float]:
        """What else TensorBoard shows as curves, by tag: what is learned or scheduled and is but a few numbers."""
        return {}

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The name under which a checkpoint keeps each weight."""
        return self.model.checkpoint_names(weights)

    @property
    def compiled(self) -> bool:
        """Whether XLA is to compile what it computes."""
        return self.model.compiled
