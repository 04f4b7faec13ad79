"""What MAML++ changes from epoch to epoch of a training, an epoch being a number of updates.

Antoniou, Edwards & Storkey, *How to train your MAML*, ICLR 2019; the constants are those of its official code
(AntreasAntoniou/HowToTrainYourMAMLPytorch, `few_shot_learning_system.py`).
"""

import math

import tensorflow as tf

LEAST_SHARE = 0.03  # of 1/N: the least weight that a step but the last can have


def step_weights(epoch: int | tf.Tensor, steps: int, epochs: int, dtype: str) -> tf.Tensor:
    """The weights of the query losses after each of N inner steps, [steps], in epoch e of E; their sum is 1.

        v_i = max(1/N − e/(N E), 0.03/N)                      for all steps but the last,
        v_N = min(1/N + e (N − 1)/(N E), 1 − (N − 1) 0.03/N)

    All count the same at first, and the last step nearly alone at the end.
    """
    passed = tf.cast(epoch, dtype) / (steps * epochs)
    early = tf.maximum(1 / steps - passed, LEAST_SHARE / steps)
    last = tf.minimum(1 / steps + (steps - 1) * passed, 1 - (steps - 1) * LEAST_SHARE / steps)
    return tf.stack([early] * (steps - 1) + [last])


def cosine_rate(epoch: int | tf.Tensor, highest: float, lowest: float, epochs: int, dtype: str) -> tf.Tensor:
    """β in epoch e of T: lowest + (highest − lowest) (1 + cos(π e/T))/2; before them the highest, behind the lowest."""
    passed = tf.clip_by_value(tf.cast(epoch, dtype) / epochs, 0, 1)
    return lowest + (highest - lowest) * (1 + tf.cos(math.pi * passed)) / 2
