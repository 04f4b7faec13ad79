"""What the learners ask of a model. The official networks are models, and so is one of your own."""

import abc
from collections.abc import Callable

import tensorflow as tf

Weights = dict[str, tf.Tensor]
Body = Callable[..., tf.Tensor]


class Model(abc.ABC):
    """A network, apart from its weights: how they begin, and what is computed with them.

    A model knows nothing of tasks: it sees one task's examples and one set of weights at a time.

    Attributes:
        adapted: names of the weights that the inner loop adapts; the others are meta-learned only.
        head: names of the last layer's weights.
        norms: names of the normalizations' shifts and scales.
        input_shape: of an example.
        dtype: floating-point type of weights, inputs and outputs.
        compiled: whether XLA is to compile it, and all tasks of a batch are to be computed side by side. That
            pays for small dense layers, which drown in op dispatch; on a processor not for convolutions.
    """

    adapted: frozenset[str]
    head: frozenset[str]
    norms: frozenset[str] = frozenset()
    input_shape: tuple[int, ...]
    dtype: str = "float32"
    compiled: bool = False

    @abc.abstractmethod
    def init(self, seed: int) -> Weights:
        """Fresh weights, a function of `seed` alone."""

    @abc.abstractmethod
    def apply(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [examples, …] of one task's inputs [examples, …].

        Args:
            reference: batch-norm takes its statistics from so many examples, the first ones, instead of
                from all. For prediction only.
        """

    def parts(self) -> tuple["Body", "Model"] | None:
        """The body, a function of weights, inputs and reference, and the head, a model of what that returns.

        None where a model is not two such parts, one behind the other.
        """
        return None

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The name under which a checkpoint keeps each weight."""
        return {name: name for name in weights}
