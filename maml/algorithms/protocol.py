"""What training, testing and checkpoints ask of an algorithm, and what all algorithms share."""

from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from maml.algorithms.adam import AdamState
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.official import Network, Weights


class TrainState(NamedTuple):
    """Everything a training changes.

    weights: what is meta-learned.
    pretrain, metatrain: pre-training and meta-training have an Adam of their own; one that an
        algorithm has no use for is `adam_init({})`.
    """

    weights: Weights
    pretrain: AdamState
    metatrain: AdamState


class Column(NamedTuple):
    """One of the things that are measured on every task.

    label: in the table of a test.
    key: in the .csv of a test.
    tag: in TensorBoard, after the measure's name.
    """

    label: str
    key: str
    tag: str


class Algorithm(Protocol):
    """A learner: `maml.algorithms.build` makes that of a config.

    config: the run's setting.
    network: the network that it meta-learns.
    compiled: whether XLA should compile what it computes.
    """

    config: Config
    network: Network
    compiled: bool

    def init_state(self) -> TrainState:
        """The state before the first update, a function of the config's seed."""

    def update(self, state: TrainState, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[TrainState, tf.Tensor]:
        """One update on a batch of training tasks: the new state, and the loss before the update, [].

        Args:
            iteration: how many updates came before, [].
        """

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The loss of an update, and what its optimizer takes for the gradient, by weight."""

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Any:
        """What is learned from support sets of any size, balanced or not; only `predict` reads it."""

    def predict(self, adapted: Any, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs (logits) of the query sets `inputb`, [tasks, N·Q, dim_output].

        Args:
            adapted: what `adapt` made of the support sets `inputa`.
        """

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """The measures "loss" and, for classification, "accuracy" of every task: [tasks, columns].

        Args:
            num_updates: inner steps, where the algorithm takes as many as it is asked for.
        """

    def columns(self, num_updates: int) -> list[Column]:
        """What the columns of `evaluate` are."""

    @property
    def reported(self) -> tuple[int, ...]:
        """The columns that the lines printed in training show; the last chooses the best checkpoint."""
