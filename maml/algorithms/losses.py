"""Losses of the official code, on its scale. Source: official `utils.py`, `maml.py`."""

import tensorflow as tf


def mse(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean squared error of every task: [tasks, examples, dim] twice → [tasks]."""
    return tf.reduce_mean(tf.square(outputs - labels), [1, 2])


def xent(outputs: tf.Tensor, labels: tf.Tensor, update_batch_size: int) -> tf.Tensor:
    """Cross-entropy of every task, *summed* over its examples and divided by the shot.

    The official loss is a vector over the examples, divided by K, and the gradient of a vector
    is that of its sum. For a support set of N·K examples this is N times the mean, so an inner
    rate of 0.4 on 5-way tasks is 2.0 on a mean loss.

    Args:
        outputs: logits [tasks, examples, N].
        labels: one-hot [tasks, examples, N].
        update_batch_size: K.

    Returns:
        [tasks].
    """
    losses = tf.nn.softmax_cross_entropy_with_logits(labels, outputs)
    return tf.reduce_sum(losses, 1) / update_batch_size


def accuracy(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Share of right answers of every task: [tasks, examples, N] twice → [tasks]."""
    right = tf.equal(tf.argmax(outputs, -1), tf.argmax(labels, -1))
    return tf.reduce_mean(tf.cast(right, outputs.dtype), 1)
