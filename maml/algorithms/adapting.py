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

RATE = "alpha/"  # before a weight's name: its learned inner rate
INITIAL_RATES = (0.005, 0.1)


def row(rows: tf.Tensor, step: int | tf.Tensor) -> int | tf.Tensor:
    """The row of a step: the last one where there are no more."""
    last = rows.shape[0] - 1
    return min(step, last) if isinstance(step, int) else tf.minimum(step, last)


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
    def inner_step(self, weights: Weights, inputa: Any, labela: Any, step: Any = 0, shots: Any = None) -> tuple:
        """One step of adaptation to one task: θ', and the support set's outputs and loss under θ."""

    @abc.abstractmethod
    def task_metalearn(self, weights: Weights, task: Episodes, num_updates: int, every_step: bool = False) -> Any:
        """Adapts to one task and evaluates on its query set: an `Outcome`."""

    @property
    def adapted(self) -> frozenset[str]:
        """The names of the weights that the inner loop adapts: the model's, or of these the head's or the body's."""
        every, which = self.model.adapted, self.config.adapt
        if which == "all":
            return every
        return every & self.model.head if which == "head" else every - self.model.head

    def rates(self, weights: Weights, step: int | tf.Tensor) -> dict[str, Any]:
        """α of every adapted weight in an inner step: the config's, or the learned one.

        Steps beyond those of the training take the α of the last one.

        Args:
            weights: those learned have α as `alpha/<weight>`, of the weight's shape or [num_updates].
            step: how many came before.
        """
        learned = self.config.learn_rates
        if learned == "none":
            return dict.fromkeys(self.adapted, self.config.update_lr)
        alpha = {name: weights[RATE + name] for name in self.adapted}
        return alpha if learned == "weight" else {name: rows[row(rows, step)] for name, rows in alpha.items()}

    def init_rates(self, weights: Weights) -> Weights:
        """The learned α before the first update: drawn from U(0.005, 0.1) for every weight, or `update_lr` a step.

        Source: Meta-SGD's, Li et al. 2017; MAML++'s, Antoniou et al. 2019.
        """
        learned, config = self.config.learn_rates, self.config
        rates = {}
        for index, name in enumerate(sorted(self.adapted) if learned != "none" else ()):
            if learned == "weight":
                seed = [config.seed, 1000 + index]
                rates[RATE + name] = tf.random.stateless_uniform(
                    weights[name].shape, seed, *INITIAL_RATES, weights[name].dtype, alg="philox"
                )
            else:
                rates[RATE + name] = tf.fill([config.num_updates], tf.constant(config.update_lr, weights[name].dtype))
        return rates

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed, and both Adam states at zero."""
        weights = self.model.init(self.config.seed)
        weights |= self.init_rates(weights)
        return TrainState(weights, adam_init(weights), adam_init(weights))

    def of_phase(self, iteration: tf.Tensor | int, pretrain: Callable[[], Any], metatrain: Callable[[], Any]) -> Any:
        """What one of two functions returns, by the phase that an iteration belongs to."""
        pretraining = self.config.pretraining
        if pretraining in (0, self.config.total_iterations):
            return pretrain() if pretraining else metatrain()
        return tf.cond(iteration < pretraining, pretrain, metatrain)

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The model's names; a learned α is `alpha/<weight>`."""
        own = {name: weight for name, weight in weights.items() if not name.startswith(RATE)}
        return self.model.checkpoint_names(own) | {name: name for name in weights if name not in own}

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
                fast, _, loss = self.inner_step(fast, task.inputa, task.labela, step - 1)
                yield (
                    f"support loss after inner step {step - 1}" if step > 1 else "support loss before adaptation",
                    loss,
                )
                yield from ((f"weight {name} after inner step {step}", weight) for name, weight in fast.items())
            lossb = self.loss_func(self.predict(fast, task.inputa, task.inputb), task.labelb)
            yield f"query loss after inner step {self.config.num_updates}", lossb
