"""Losses of one task, on the official code's scale. Source: official `utils.py`, `maml.py`.

Outputs and labels of different shapes are refused: TensorFlow would broadcast them, to a number without a meaning.
"""

import tensorflow as tf

from maml.errors import UserError


def mse(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean squared error: [examples, dim] twice → []."""
    _check_alike(outputs, labels)
    return tf.reduce_mean(tf.square(outputs - labels))


def xent(outputs: tf.Tensor, labels: tf.Tensor, update_batch_size: int | tf.Tensor) -> tf.Tensor:
    """Cross-entropy *summed* over the examples and divided by the shot.

    The official loss is a vector over the examples, divided by K, and the gradient of a vector
    is that of its sum. For a support set of N·K examples this is N times the mean, so an inner
    rate of 0.4 on 5-way tasks is 2.0 on a mean loss.

    Args:
        outputs: logits [examples, N].
        labels: one-hot [examples, N].
        update_batch_size: K.

    Returns:
        [].
    """
    _check_alike(outputs, labels)
    return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, outputs)) / update_batch_size


def mean_xent(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy: logits and one-hot labels [examples, N] → []."""
    _check_alike(outputs, labels)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, outputs))


def accuracy(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Share of right answers: [examples, N] twice → []."""
    right = tf.equal(tf.argmax(outputs, -1), tf.argmax(labels, -1))
    return tf.reduce_mean(tf.cast(right, outputs.dtype))


def _check_alike(outputs: tf.Tensor, labels: tf.Tensor) -> None:
    """Raises UserError if outputs and labels have different shapes."""
    if not tf.TensorShape(outputs.shape).is_compatible_with(labels.shape):
        raise UserError(
            f"the model's outputs have the shape {list(outputs.shape)}, and the labels {list(labels.shape)}"
        )
