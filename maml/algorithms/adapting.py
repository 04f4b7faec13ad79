"""What MAML's page leaves out: how it is measured and diagnosed, its state, and its two phases of training."""

import abc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import AdamState, adam_init
from maml.algorithms.protocol import Algorithm, Column
from maml.data_generator import Episodes
from maml.models.protocol import Weights
from maml.parallel import map_tasks


class TrainState(NamedTuple):
    """Everything that a training changes; pre-training and meta-training have an Adam of their own."""

    weights: Weights
    pretrain: AdamState
    metatrain: AdamState


class Adapting(Algorithm):
    """An algorithm that adapts a model's weights to a task."""

    def predict(self, adapted: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of one task's query set `inputb`, [examples, dim_output], under adapted weights.

        Batch-norm standardizes them by their own statistics, or by those of the support set
        `inputa` under the same weights (`--bn_mode=support`).
        """
        if self.config.bn_mode != "support":
            return self.model.apply(adapted, inputb)
        support = tf.shape(inputa)[0]
        return self.model.apply(adapted, tf.concat([inputa, inputb], 0), support)[support:]

    @property
    def side_by_side(self) -> bool:
        """Whether all tasks of a batch are computed in the same operations; see `map_tasks`."""
        return self.model.compiled and not self.config.recompute


class GradientBased(Adapting):
    """MAML and its family: the abstract methods make it a certain one; `maml.maml.MAML` says what they do."""

    @abc.abstractmethod
    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor, shots: Any = None) -> tf.Tensor:
        """Loss of one task, []."""

    @abc.abstractmethod
    def inner_step(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, shots: Any = None) -> tuple:
        """One step of adaptation to one task: θ', and the support set's outputs and loss under θ."""

    @abc.abstractmethod
    def task_metalearn(self, weights: Weights, task: Episodes, num_updates: int, every_step: bool = False) -> Any:
        """Adapts to one task and evaluates on its query set: an `Outcome`."""

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed, and both Adam states at zero."""
        weights = self.model.init(self.config.seed)
        return TrainState(weights, adam_init(weights), adam_init(weights))

    def of_phase(self, iteration: tf.Tensor | int, pretrain: Callable[[], Any], metatrain: Callable[[], Any]) -> Any:
        """What one of two functions returns, by the phase that an iteration belongs to."""
        pretraining = self.config.pretraining
        if pretraining in (0, self.config.total_iterations):
            return pretrain() if pretraining else metatrain()
        return tf.cond(iteration < pretraining, pretrain, metatrain)

    def columns(self, num_updates: int) -> list[Column]:
        """The support set before adaptation, then the query set after every step."""
        after = [
            Column(f"{step} update{'s'[: step > 1]}, query set", f"update{step}", f"Post-update, step {step}")
            for step in range(1, num_updates + 1)
        ]
        return [Column("before, support set", "update0", "Pre-update"), *after]

    @property
    def reported(self) -> tuple[int, int]:
        """Before adaptation, and after as many steps as training takes."""
        return 0, self.config.num_updates

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """Losses and accuracies of every task at every step; column 0 is the support set before adaptation.

        Returns:
            "loss" and, for classification, "accuracy": [tasks, num_updates + 1].
        """

        def of_task(task: Episodes) -> dict[str, tf.Tensor]:
            outcome = self.task_metalearn(weights, task, num_updates, every_step=True)
            measures = {"loss": tf.stack([outcome.lossa, *outcome.lossesb])}
            if self.config.classification:
                before = losses.accuracy(outcome.outputa, task.labela)
                after = [losses.accuracy(outputs, task.labelb) for outputs in outcome.outputbs]
                measures["accuracy"] = tf.stack([before, *after])
            return measures

        names = ("loss", "accuracy") if self.config.classification else ("loss",)
        like = dict.fromkeys(names, tf.TensorSpec([num_updates + 1], self.config.dtype))
        return map_tasks(of_task, episodes, like, self.side_by_side)

    def adaptation(self, weights: Weights, episodes: Episodes) -> Iterator[tuple[str, Any]]:
        """Support losses, fast weights and query loss of the tasks, one after another."""
        for task in episodes.tasks():
            fast = weights
            for step in range(1, self.config.num_updates + 1):
                fast, _, loss = self.inner_step(fast, task.inputa, task.labela)
                yield (
                    f"support loss after inner step {step - 1}" if step > 1 else "support loss before adaptation",
                    loss,
                )
                yield from ((f"weight {name} after inner step {step}", weight) for name, weight in fast.items())
            lossb = self.loss_func(self.predict(fast, task.inputa, task.inputb), task.labelb)
            yield f"query loss after inner step {self.config.num_updates}", lossb
