"""Adam as TensorFlow 1 computed it, as a function on dicts of tensors."""

from typing import NamedTuple

import tensorflow as tf

from maml.models.protocol import Weights

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class AdamState(NamedTuple):
    """m, v: running means of the gradients and of their squares, by name; step: updates so far (int64 [])."""

    m: Weights
    v: Weights
    step: tf.Tensor


def adam_init(weights: Weights) -> AdamState:
    """The state before the first update."""
    zeros = {name: tf.zeros_like(weight) for name, weight in weights.items()}
    return AdamState(zeros, dict(zeros), tf.constant(0, tf.int64))


def adam_update(weights: Weights, gradients: Weights, state: AdamState, learning_rate) -> tuple[Weights, AdamState]:
    """One update: w ← w − α·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε), with ε outside the bias correction.

    Source: Kingma & Ba 2015, the form before their section 2.1, as TensorFlow 1's AdamOptimizer.
    """
    step = state.step + 1
    dtype = next(iter(weights.values())).dtype
    t = tf.cast(step, dtype)
    rate = (
        learning_rate * tf.sqrt(1 - tf.pow(tf.constant(BETA_2, dtype), t)) / (1 - tf.pow(tf.constant(BETA_1, dtype), t))
    )
    m = {name: BETA_1 * state.m[name] + (1 - BETA_1) * gradient for name, gradient in gradients.items()}
    v = {name: BETA_2 * state.v[name] + (1 - BETA_2) * tf.square(gradient) for name, gradient in gradients.items()}
    updated = {name: weight - rate * m[name] / (tf.sqrt(v[name]) + EPSILON) for name, weight in weights.items()}
    return updated, AdamState(m, v, step)
