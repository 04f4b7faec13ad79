"""Inner steps whose intermediate results are computed again in the backward pass, to save memory."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from maml.models.protocol import Weights


def recomputed(step: Callable[..., Any]) -> Callable[..., Any]:
    """An inner step that keeps only its weights for the backward pass, and computes the rest again there.

    tf.recompute_grad will not do: it pauses all tapes in the forward pass, the one of the inner
    gradient with them, and the step would adapt nothing.

    Args:
        step: of the weights, of other tensors, to which no gradient flows, and of numbers; returns a structure of
            tensors.
    """

    def run(weights: Weights, *data: Any) -> Any:
        # Computed outside of the custom gradient, because eagerly that pauses tapes, too.
        result = step(tf.nest.map_structure(tf.stop_gradient, weights), *data)
        values = [tf.stop_gradient(value) for value in tf.nest.flatten(result)]

        @tf.custom_gradient
        def attach(*flat: tf.Tensor):
            def gradient(*dvalues: tf.Tensor):
                # Without this order, the optimizer of graphs would find both computations to be the same.
                with tf.control_dependencies(dvalues):
                    again = [tf.identity(weight) for weight in flat]
                with tf.GradientTape() as tape:
                    tape.watch(again)
                    result = step(tf.nest.pack_sequence_as(weights, again), *data)
                return tape.gradient(tf.nest.flatten(result), again, dvalues, unconnected_gradients="zero")

            return [tf.identity(value) for value in values], gradient

        return tf.nest.pack_sequence_as(result, attach(*tf.nest.flatten(weights)))

    return run
