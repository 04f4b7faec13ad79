"""What prototypical and matching networks share: an embedding is meta-learned, and nothing is adapted.

A query is classified by how alike its embedding is to those of the support set. The embedding is
the convolutional network of the other algorithms without its head. All tasks have the same
weights, so a task at a time is computed, by plain convolutions.
"""

import abc
import math

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import adam_init, adam_update
from maml.algorithms.protocol import Column, TrainState
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.official import Network, Weights
from maml.parallel import map_parts

LEARNT_SCALE = 10.0  # where a learnt scale starts
TINY = 1e-12


class MetricLearner(abc.ABC):
    """A learner of an embedding; `construct_weights` and `logits` make it a certain one."""

    compiled = False  # XLA's convolutions are slow on the CPU

    def __init__(self, config: Config):
        """Builds the learner for a setting."""
        self.config = config
        self.network = Network.from_config(config)

    def construct_weights(self, seed: int) -> Weights:
        """Fresh weights: the embedding's and, if it is learnt, the logarithm of the likeness's scale."""
        weights = self.network.construct_embedding(seed)
        if self.config.attention_scale == 0:
            weights["likeness/log_scale"] = tf.constant(math.log(LEARNT_SCALE), self.config.dtype)
        return weights

    @abc.abstractmethod
    def logits(self, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """What the softmax turns into the queries' class probabilities.

        Args:
            weights: all of them.
            support: embeddings [tasks, N·K, dim_embedding].
            labels: one-hot [tasks, N·K, N].
            query: embeddings [tasks, N·Q, dim_embedding].

        Returns:
            [tasks, N·Q, N].
        """

    def likeness(self, weights: Weights, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """How alike embeddings are, times the scale: [tasks, n, dim] and [tasks, m, dim] → [tasks, n, m]."""
        scale = self.config.attention_scale or tf.exp(weights["likeness/log_scale"])
        return scale * (cosine if self.config.distance == "cosine" else minus_squared_distance)(first, second)

    def adapt(
        self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int
    ) -> tuple[Weights, tf.Tensor]:
        """Nothing is adapted: what `predict` needs, besides the support set."""
        return weights, labela

    def predict(self, adapted: tuple[Weights, tf.Tensor], inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Logits of the query sets, [tasks, N·Q, N].

        Support and query set are embedded together: both are standardized by the same statistics, those
        of the whole task, or with `--bn_mode=support` those of the support set.
        """
        weights, labels = adapted
        support = tf.shape(inputa)[1]
        reference = support if self.config.bn_mode == "support" else None
        embedded = self.network.embed(tf.concat([inputa, inputb], 1), weights, reference)
        return self.logits(weights, embedded[:, :support], labels, embedded[:, support:])

    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Mean cross-entropy of each task's queries, [tasks]."""
        return losses.xent(outputs, labels, labels.shape[1])

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The mean loss of the query sets, and its gradient."""

        def of_task(episodes: Episodes) -> tuple[tf.Tensor, Weights]:
            inputa, labela, inputb, labelb = episodes
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = tf.reduce_mean(self.loss_func(self.predict((weights, labela), inputa, inputb), labelb))
            return loss, tape.gradient(loss, weights, unconnected_gradients="zero")

        tasks = map_parts(of_task, episodes, 1, (tf.zeros([], self.config.dtype), weights))
        return tf.nest.map_structure(lambda values: tf.reduce_mean(values, 0), tasks)

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed, and Adam at zero."""
        weights = self.construct_weights(self.config.seed)
        return TrainState(weights, adam_init({}), adam_init(weights))

    def update(self, state: TrainState, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[TrainState, tf.Tensor]:
        """One step of Adam; its rate is halved every `halving_interval` iterations."""
        loss, gradients = self.gradient(state.weights, episodes, iteration)
        rate, interval = self.config.meta_lr, self.config.halving_interval
        if interval:
            rate *= tf.pow(tf.constant(0.5, self.config.dtype), tf.cast(iteration // interval, self.config.dtype))
        weights, adam = adam_update(state.weights, gradients, state.metatrain, rate)
        return state._replace(weights=weights, metatrain=adam), loss

    def columns(self, num_updates: int) -> list[Column]:
        """The query set alone: there is no before and after."""
        return [Column("query set", "query", "Query set")]

    @property
    def reported(self) -> tuple[int, ...]:
        """The query set."""
        return (0,)

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """Mean loss and accuracy of every task's query set, [tasks, 1] each."""

        def of_task(episodes: Episodes) -> dict[str, tf.Tensor]:
            inputa, labela, inputb, labelb = episodes
            outputs = self.predict((weights, labela), inputa, inputb)
            return {"loss": self.loss_func(outputs, labelb), "accuracy": losses.accuracy(outputs, labelb)}

        like = {name: tf.zeros([1], self.config.dtype) for name in ("loss", "accuracy")}
        return map_parts(of_task, episodes, 1, like)


def minus_squared_distance(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """−‖a − b‖² = 2 a·b − ‖a‖² − ‖b‖² of all pairs: [tasks, n, dim] and [tasks, m, dim] → [tasks, n, m]."""
    norms = [tf.reduce_sum(tf.square(vectors), -1) for vectors in (first, second)]
    return 2 * tf.matmul(first, second, transpose_b=True) - norms[0][:, :, None] - norms[1][:, None]


def cosine(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """a·b / (‖a‖ ‖b‖) of all pairs; 0 where one is zero, as the embedding of an example may be after ReLUs."""
    unit = [tf.math.l2_normalize(vectors, -1, TINY) for vectors in (first, second)]
    return tf.matmul(unit[0], unit[1], transpose_b=True)
