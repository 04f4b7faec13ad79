"""What prototypical and matching networks share: an embedding is meta-learned, and nothing is adapted.

A query is classified by how similar its embedding is to those of the support set. The embedding is
the convolutional network of the other algorithms without its head. All tasks have the same
weights.
"""

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import AdamState, adam_init, adam_update
from maml.algorithms.protocol import Algorithm, Column
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.official import Network
from maml.models.protocol import Weights
from maml.parallel import map_tasks, mean_gradient

LEARNED_SCALE = 10.0  # where a learned scale starts
LOG_SCALE = "likeness/log_scale"  # the name in checkpoints since the first of them
TINY = 1e-12


class MetricState(NamedTuple):
    """Everything that a training changes; `metatrain` is Adam's."""

    weights: Weights
    metatrain: AdamState


class MetricLearner(Algorithm):
    """A learner of an embedding; `construct_weights` and `logits` make it a certain one."""

    def __init__(self, config: Config, model: Network | None = None):
        """Builds the learner for a setting; `model` stands in for the official network."""
        self.config = config
        self.model: Network = model or Network.from_config(config)

    def construct_weights(self, seed: int) -> Weights:
        """Fresh weights: the embedding's and, if it is learned, the logarithm of the similarity's scale."""
        weights = {name: weight for name, weight in self.model.init(seed).items() if name not in self.model.head}
        if self.config.attention_scale == 0:
            weights[LOG_SCALE] = tf.constant(math.log(LEARNED_SCALE), self.config.dtype)
        return weights

    @abc.abstractmethod
    def logits(self, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """What the softmax turns into the class probabilities of one task's queries.

        Args:
            weights: all of them.
            support: embeddings [N·K, dim_embedding].
            labels: one-hot [N·K, N].
            query: embeddings [N·Q, dim_embedding].

        Returns:
            [N·Q, N].
        """

    def similarity(self, weights: Weights, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """Similarities of embeddings, times the scale: [n, dim] and [m, dim] → [n, m]."""
        scale = self.config.attention_scale or tf.exp(weights[LOG_SCALE])
        return scale * (cosine if self.config.distance == "cosine" else minus_squared_distance)(first, second)

    def adapt(
        self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int
    ) -> tuple[Weights, tf.Tensor]:
        """Nothing is adapted: what `predict` needs, besides the support set."""
        return weights, labela

    def predict(self, adapted: tuple[Weights, tf.Tensor], inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Logits of one task's query set, [N·Q, N].

        Support and query set are embedded together: both are standardized by the same statistics, those
        of the whole task, or with `--bn_mode=support` those of the support set.
        """
        weights, labels = adapted
        support = tf.shape(inputa)[0]
        reference = support if self.config.bn_mode == "support" else None
        embedded = self.model.embed(weights, tf.concat([inputa, inputb], 0), reference)
        return self.logits(weights, embedded[:support], labels, embedded[support:])

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The mean loss of the query sets, and its gradient."""

        def task_loss(weights: Weights, task: Episodes) -> tf.Tensor:
            return losses.mean_xent(self.predict((weights, task.labela), task.inputa, task.inputb), task.labelb)

        return mean_gradient(task_loss, weights, episodes)

    def init_state(self) -> MetricState:
        """Fresh weights from the config's seed, and Adam at zero."""
        weights = self.construct_weights(self.config.seed)
        return MetricState(weights, adam_init(weights))

    def apply(self, state: MetricState, gradients: Weights, iteration: tf.Tensor | int) -> MetricState:
        """One step of Adam; its rate is halved every `halving_interval` iterations."""
        rate, interval = self.config.meta_lr, self.config.halving_interval
        if interval:
            rate *= tf.pow(tf.constant(0.5, self.config.dtype), tf.cast(iteration // interval, self.config.dtype))
        return MetricState(*adam_update(state.weights, gradients, state.metatrain, rate))

    def columns(self, num_updates: int) -> list[Column]:
        """The query set alone: there is no before and after."""
        return [Column("query set", "query", "Query set")]

    @property
    def reported(self) -> tuple[int, ...]:
        """The query set."""
        return (0,)

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """Mean loss and accuracy of every task's query set, [tasks, 1] each."""
        return query_measures(lambda task: self.predict((weights, task.labela), task.inputa, task.inputb), episodes)


def query_measures(outputs_of: Callable[[Episodes], tf.Tensor], episodes: Episodes) -> dict[str, tf.Tensor]:
    """Mean loss and accuracy of every task's query set, [tasks, 1] each.

    Args:
        outputs_of: logits [N·Q, N] of one task's query set.
    """

    def of_task(task: Episodes) -> dict[str, tf.Tensor]:
        outputs, measures = outputs_of(task), {"loss": losses.mean_xent, "accuracy": losses.accuracy}
        return {name: measure(outputs, task.labelb)[None] for name, measure in measures.items()}

    like = dict.fromkeys(("loss", "accuracy"), tf.TensorSpec([1], episodes.labelb.dtype))
    return map_tasks(of_task, episodes, like)


def minus_squared_distance(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """−‖a − b‖² = 2 a·b − ‖a‖² − ‖b‖² of all pairs: [n, dim] and [m, dim] → [n, m]."""
    norms = [tf.reduce_sum(tf.square(vectors), -1) for vectors in (first, second)]
    return 2 * tf.matmul(first, second, transpose_b=True) - norms[0][:, None] - norms[1]


def cosine(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """a·b / (‖a‖ ‖b‖) of all pairs; 0 where one is zero, as the embedding of an example may be after ReLUs."""
    unit = [tf.math.l2_normalize(vectors, -1, TINY) for vectors in (first, second)]
    return tf.matmul(unit[0], unit[1], transpose_b=True)
