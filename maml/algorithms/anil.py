"""ANIL (almost no inner loop): only the head is adapted; the body learns through the inner gradient, too.

Raghu, Raghu, Bengio & Vinyals, *Rapid Learning or Feature Reuse?*, ICLR 2020. The body's weights are the same in
every inner step, so each set of a task goes through it once.
"""

import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes
from maml.maml import MAML, Outcome
from maml.models.protocol import Body, Model, Weights


def query_features(config: Config, body: Body, weights: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
    """A query set's features, by its own batch statistics or those of the support set (`--bn_mode=support`)."""
    if config.bn_mode != "support":
        return body(weights, inputb)
    support = tf.shape(inputa)[0]
    return body(weights, tf.concat([inputa, inputb], 0), support)[support:]


class ANIL(MAML):
    """MAML whose inner loop adapts the head alone."""

    def __init__(self, config: Config, model: Model | None = None):
        """Builds the learner for a setting; `model` stands in for the official network."""
        super().__init__(config, model)
        # A body that has weights for each step is not the same in all of them.
        once = self.adapted <= self.model.head and not config.per_step_bn
        self.parts = self.model.parts() if once else None
        self.on_features = self.of_model(self.parts[1]) if self.parts else self

    def of_model(self, model: Model) -> MAML:
        """MAML of another model, with the same loss."""
        return MAML(self.config, model)

    def task_metalearn(self, weights: Weights, task: Episodes, num_updates: int, every_step: bool = False) -> Outcome:
        """As MAML's, of the features of both sets, each standardized by itself."""
        if not self.parts:
            return super().task_metalearn(weights, task, num_updates, every_step)
        body, _ = self.parts
        inputa = body(weights, task.inputa)
        inputb = query_features(self.config, body, weights, task.inputa, task.inputb)
        of_features = task._replace(inputa=inputa, inputb=inputb)
        return self.on_features.task_metalearn(weights, of_features, num_updates, every_step)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """As MAML's, of the features."""
        if not self.parts:
            return super().adapt(weights, inputa, labela, num_updates)
        return self.on_features.adapt(weights, self.parts[0](weights, inputa), labela, num_updates)
