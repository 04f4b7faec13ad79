"""The interface between a learner and a model. The official networks implement it, and so can a model of your own."""

import abc
from collections.abc import Callable

import tensorflow as tf

Weights = dict[str, tf.Tensor]
Body = Callable[..., tf.Tensor]


class Model(abc.ABC):
    """A network without its weights: how they are initialized, and what is computed from them.

    A model knows nothing of tasks: it sees one task's examples and one set of weights at a time.

    Attributes:
        adapted: names of the weights that the inner loop adapts; the others are meta-learned only.
        head: names of the last layer's weights.
        norms: names of the normalizations' shifts and scales.
        input_shape: of an example.
        dtype: floating-point type of weights, inputs and outputs.
        compiled: whether to compile it with XLA and compute all tasks of a batch side by side. This pays off
            for small dense layers, which are dominated by op dispatch, but not for convolutions on a CPU.
    """

    adapted: frozenset[str]
    head: frozenset[str]
    norms: frozenset[str] = frozenset()
    input_shape: tuple[int, ...]
    dtype: str = "float32"
    compiled: bool = False

    @abc.abstractmethod
    def init(self, seed: int) -> Weights:
        """Initial weights, determined by `seed` alone."""

    @abc.abstractmethod
    def apply(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [examples, …] of one task's inputs [examples, …].

        Args:
            reference: take batch-norm's statistics from only the first so many examples. For prediction only.
        """

    def parts(self) -> tuple["Body", "Model"] | None:
        """The body, a function of weights, inputs and reference, and the head, a model on top of its outputs.

        None if the model does not consist of two such parts.
        """
        return None

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The name of each weight in checkpoints."""
        return {name: name for name in weights}
