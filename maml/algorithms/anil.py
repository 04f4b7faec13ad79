"""ANIL (almost no inner loop): only the head is adapted; the body learns through the inner gradient, too.

Raghu, Raghu, Bengio & Vinyals, *Rapid Learning or Feature Reuse?*, ICLR 2020. The body's weights are the same in
every inner step, so each set of a task goes through it once.
"""

import dataclasses

import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes
from maml.maml import MAML, Outcome
from maml.models.official import Network, forward_head
from maml.models.protocol import Model, Weights


@dataclasses.dataclass(frozen=True)
class Head(Model):
    """The last layer of a network, as a model of the features before it.

    network: whose last layer it is.
    """

    network: Network

    @property
    def adapted(self) -> frozenset[str]:  # type: ignore[override]
        """Its matrix and bias."""
        return self.network.head

    @property
    def head(self) -> frozenset[str]:  # type: ignore[override]
        """All of it."""
        return self.network.head

    def init(self, seed: int) -> Weights:
        """The network's own first values."""
        return {name: weight for name, weight in self.network.init(seed).items() if name in self.head}

    def apply(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [examples, dim_output] of features [examples, …]."""
        return forward_head(inputs, weights, self.network)


def query_features(
    config: Config, network: Network, weights: Weights, inputa: tf.Tensor, inputb: tf.Tensor
) -> tf.Tensor:
    """A query set's features, by its own batch statistics or those of the support set (`--bn_mode=support`)."""
    if config.bn_mode != "support":
        return network.features(weights, inputb)
    support = tf.shape(inputa)[0]
    return network.features(weights, tf.concat([inputa, inputb], 0), support)[support:]


class ANIL(MAML):
    """MAML whose inner loop adapts the head alone."""

    def __init__(self, config: Config, model: Model | None = None):
        """Builds the learner for a setting; `model` stands in for the official network."""
        super().__init__(config, model)
        # A model of one's own cannot be cut in two, and a body that has weights for each step is not the same in all.
        once = config.adapt == "head" and not config.per_step_bn
        self.network = self.model if isinstance(self.model, Network) and once else None
        self.on_features = MAML(config, Head(self.network)) if self.network else self

    def task_metalearn(self, weights: Weights, task: Episodes, num_updates: int, every_step: bool = False) -> Outcome:
        """As MAML's, of the features of both sets, each standardized by itself."""
        if not self.network:
            return super().task_metalearn(weights, task, num_updates, every_step)
        inputa = self.network.features(weights, task.inputa)
        inputb = query_features(self.config, self.network, weights, task.inputa, task.inputb)
        of_features = task._replace(inputa=inputa, inputb=inputb)
        return self.on_features.task_metalearn(weights, of_features, num_updates, every_step)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """As MAML's, of the features."""
        if not self.network:
            return super().adapt(weights, inputa, labela, num_updates)
        return self.on_features.adapt(weights, self.network.features(weights, inputa), labela, num_updates)
