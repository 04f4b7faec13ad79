"""NIL (no inner loop): a body that MAML or ANIL has trained, tested without its head and without adaptation.

Raghu, Raghu, Bengio & Vinyals, *Rapid Learning or Feature Reuse?*, ICLR 2020, section 5.1: a query takes the labels of
the support set in proportion to the cosine of their features, as in matching networks.
"""

import tensorflow as tf

from maml.algorithms.anil import query_features
from maml.algorithms.matching import class_attention
from maml.algorithms.metric import cosine, query_measures
from maml.algorithms.protocol import Column
from maml.data_generator import Episodes
from maml.maml import MAML
from maml.models.official import Network
from maml.models.protocol import Weights

Labeled = tuple[Weights, tf.Tensor, tf.Tensor]  # the weights, and a support set's features and labels


class NIL(MAML):
    """A learner for tests and predictions only; nothing is adapted."""

    def adapt(  # type: ignore[override]
        self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int
    ) -> Labeled:
        """The support set's features, and what `predict` needs besides. Of weights for each step, the last ones."""
        here = self.of_step(weights, self.config.num_updates - 1)
        return here, self._network.features(here, inputa), labela

    def predict(self, adapted: Labeled, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:  # type: ignore[override]
        """Logarithms of each class's share of the attention, [N·Q, N]."""
        weights, support, labels = adapted
        query = query_features(self.config, self._network.features, weights, inputa, inputb)
        return class_attention(cosine(query, support), labels)

    def columns(self, num_updates: int) -> list[Column]:
        """The query set alone: there is no before and after."""
        return [Column("cosine head, query set", "nil", "Cosine head")]

    @property
    def reported(self) -> tuple[int, ...]:  # type: ignore[override]
        """The query set."""
        return (0,)

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:  # type: ignore[override]
        """Mean loss and accuracy of every task's query set, [tasks, 1] each."""

        def outputs_of(task: Episodes) -> tf.Tensor:
            return self.predict(self.adapt(weights, task.inputa, task.labela, 0), task.inputa, task.inputb)

        return query_measures(outputs_of, episodes)

    @property
    def _network(self) -> Network:
        assert isinstance(self.model, Network)  # a run of your own model has no such test
        return self.model
