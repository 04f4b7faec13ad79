"""Prototypical networks: a class is the mean of its support embeddings.

Snell, Swersky & Zemel, *Prototypical Networks for Few-shot Learning*, NIPS 2017. They are trained
with more classes a task than they are tested with (`train_num_classes`), a task an update, by Adam
with a rate that is halved every 2,000 of them.

Batch-norm is that of the other algorithms here: the statistics of the task at hand, support and
query set together, in training and in testing, and no scale. The authors' has a scale, and in
testing the running statistics of the training.
"""

import tensorflow as tf

from maml.algorithms.metric import MetricLearner
from maml.models.protocol import Weights


class PrototypicalNetworks(MetricLearner):
    """The learner."""

    def logits(self, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """The similarity of each query to each prototype; arguments as in `MetricLearner.logits`.

        p(y = k | x) = softmax_k(−‖f(x) − c_k‖²), the paper's equation 2.
        """
        return self.similarity(weights, query, prototypes(support, labels))


def prototypes(support: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The mean embedding of each class, the paper's equation 1.

    Args:
        support: [examples, dim_embedding].
        labels: one-hot [examples, N], at least one example of each class.

    Returns:
        [N, dim_embedding].
    """
    return tf.matmul(labels, support, transpose_a=True) / tf.reduce_sum(labels, 0)[:, None]
