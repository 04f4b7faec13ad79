"""What MAML's page leaves out: how it is measured and diagnosed, its state, and its two phases of training."""

import abc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms import annealing, ensemble, losses
from maml.algorithms.adam import AdamState, adam_init
from maml.algorithms.protocol import Algorithm, Column
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError
from maml.kernels.dense import filled
from maml.models.protocol import Weights
from maml.parallel import map_tasks, mean_gradient

RATE = "alpha/"  # before a weight's name: its learned inner rate
INITIAL_RATES = (0.005, 0.1)
GRADIENT_LIMIT = 10.0


def row(rows: tf.Tensor, step: int | tf.Tensor) -> int | tf.Tensor:
    """The row of a step: the last one where there are no more."""
    last = rows.shape[0] - 1
    return min(step, last) if isinstance(step, int) else tf.minimum(step, last)


def clipped(gradients: Weights) -> Weights:
    """Each element clipped to [−10, 10], but of a learned α; one that is not finite stays so, and is noticed."""

    def limited(gradient: tf.Tensor) -> tf.Tensor:
        within = tf.clip_by_value(gradient, -GRADIENT_LIMIT, GRADIENT_LIMIT)
        return tf.where(tf.math.is_finite(gradient), within, gradient)

    return {name: slope if name.startswith(RATE) else limited(slope) for name, slope in gradients.items()}


class TrainState(NamedTuple):
    """Everything that a training changes; pre-training and meta-training have an Adam of their own.

    The Adam of a pre-training that the setting has not is one of no weights.
    """

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
    def of(self, config: Config) -> "GradientBased":
        """The same learner with another setting."""

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

    @property
    def per_step(self) -> frozenset[str]:
        """The names of the weights of which each inner step has its own: they have a leading axis of num_updates."""
        rates = {RATE + name for name in self.model.adapted} if self.config.learn_rates == "step" else ()
        return frozenset(rates).union(self.model.norms if self.config.per_step_bn else ())

    def of_step(self, weights: Weights, step: int | tf.Tensor) -> Weights:
        """The weights that an inner step computes with: where each step has its own, those of this step.

        Steps beyond those of the training take the last row. The query set after a step is computed with its row.

        Args:
            step: how many came before.
        """
        return weights | {name: weights[name][row(weights[name], step)] for name in self.per_step}

    def rates(self, weights: Weights) -> dict[str, Any]:
        """α of every adapted weight in an inner step: the config's, or the learned one.

        Args:
            weights: the step's; those learned have α as `alpha/<weight>`, of the weight's shape or [].
        """
        if self.config.learn_rates == "none":
            return dict.fromkeys(self.adapted, self.config.update_lr)
        if self.config.learn_rates == "step":
            return {name: filled(weights[RATE + name], weights[name].shape) for name in self.adapted}
        return {name: weights[RATE + name] for name in self.adapted}

    def init_rates(self, weights: Weights) -> Weights:
        """The learned α before the first update: drawn from U(0.005, 0.1) for every weight, or `update_lr` a step.

        Weights that `adapt` leaves out have one too, which stays as it is: a test may adapt them.

        Source: Meta-SGD's, Li et al. 2017; MAML++'s, Antoniou et al. 2019.
        """
        learned, config = self.config.learn_rates, self.config
        rates = {}
        for index, name in enumerate(sorted(self.model.adapted) if learned != "none" else ()):
            if learned == "weight":
                seed = [config.seed, 1000 + index]
                rates[RATE + name] = tf.random.stateless_uniform(
                    weights[name].shape, seed, *INITIAL_RATES, weights[name].dtype, alg="philox"
                )
            else:
                rates[RATE + name] = tf.fill([config.num_updates], tf.constant(config.update_lr, weights[name].dtype))
        return rates

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed, and the Adam states at zero.

        Raises:
            UserError: the model names weights to adapt that it does not have.
        """
        config, weights = self.config, self.model.init(self.config.seed)
        if unknown := sorted(self.adapted - weights.keys()):
            raise UserError(f"the model adapts {', '.join(unknown)}, and its weights are {', '.join(weights)}")
        if config.per_step_bn:
            weights |= {name: tf.stack([weights[name]] * config.num_updates) for name in self.model.norms}
        weights |= self.init_rates(weights)
        return TrainState(weights, adam_init(weights if config.pretraining else {}), adam_init(weights))

    def of_phase(self, iteration: tf.Tensor | int, pretrain: Callable[[], Any], metatrain: Callable[[], Any]) -> Any:
        """What one of two functions returns, by the phase that an iteration belongs to."""
        pretraining = self.config.pretraining
        if pretraining in (0, self.config.total_iterations):
            return pretrain() if pretraining else metatrain()
        return tf.cond(iteration < pretraining, pretrain, metatrain)

    @abc.abstractmethod
    def meta_loss(self, weights: Weights, task: Episodes, epoch: int | tf.Tensor = 0) -> tf.Tensor:
        """What meta-training minimizes, of one task, []."""

    def meta_gradient(self, weights: Weights, episodes: Episodes, epoch: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The tasks' mean meta-loss in an epoch of meta-training, and its gradient by everything that is learned."""

        def of(learner: GradientBased) -> tuple[tf.Tensor, Weights]:
            return mean_gradient(partial(learner.meta_loss, epoch=epoch), weights, episodes, self.side_by_side)

        return self.of_epoch(epoch, of)

    def step_weights(self, epoch: tf.Tensor | int) -> tf.Tensor | None:
        """Weights of the query losses after each inner step in an epoch, [num_updates]; None: the last alone counts."""
        steps, epochs = self.config.num_updates, self.config.multi_step_loss_num_epochs
        return annealing.step_weights(epoch, steps, epochs, self.config.dtype) if epochs else None

    def epoch(self, iteration: tf.Tensor | int) -> tf.Tensor | int:
        """The epoch of meta-training that an iteration belongs to, from 0."""
        return (iteration - self.config.pretraining) // self.config.total_iter_per_epoch

    def of_epoch(self, epoch: tf.Tensor | int, compute: Callable[[Any], Any]) -> Any:
        """What a function returns of this learner as it is in an epoch.

        That is first order until an epoch, and has a loss of every step until another, if so wanted; what is not of
        the epoch costs nothing.
        """
        config = self.config
        order, multi_step = config.first_order_to_second_order_epoch + 1, config.multi_step_loss_num_epochs

        def since(start: int, borders: list[int]) -> Any:
            early, every = config.stop_grad or start < order, multi_step if start < multi_step else 0
            learner = self.of(config.replace(stop_grad=early, multi_step_loss_num_epochs=every))
            if not borders:
                return compute(learner)
            later = partial(since, borders[0], borders[1:])
            return tf.cond(tf.less(epoch, borders[0]), lambda: compute(learner), later)

        borders = sorted({order, multi_step} - {0})
        return since(0, borders) if borders else compute(self)

    def meta_lr(self, iteration: tf.Tensor | int) -> tf.Tensor | float:
        """β of an iteration: the config's, or what a cosine makes of it by the epoch."""
        highest, lowest, epochs = self.config.meta_lr, self.config.min_learning_rate, self.config.total_epochs
        if not epochs:
            return highest
        return annealing.cosine_rate(self.epoch(iteration), highest, lowest, epochs, self.config.dtype)

    def charts(self, weights: Weights, iteration: int) -> dict[str, float]:
        """Learned α, for every tensor and step or as means over a tensor's, and β where it is annealed."""
        shown: dict[str, float] = {}
        for name in (name for name in weights if RATE + name in weights):  # in the order of the layers
            rates = np.ravel(weights[RATE + name])
            if self.config.learn_rates == "step":
                shown |= {f"alpha/{name}/step {step}": float(rate) for step, rate in enumerate(rates, start=1)}
            else:
                shown |= {f"alpha/{name}/mean": float(rates.mean()), f"alpha/{name}/below 0": float((rates < 0).mean())}
        if self.config.total_epochs:
            shown["meta_lr"] = float(self.meta_lr(iteration))
        return shown

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

    def evaluate(
        self, weights: Weights | Sequence[Weights], episodes: Episodes, num_updates: int
    ) -> dict[str, tf.Tensor]:
        """Losses and accuracies of every task at every step; column 0 is the support set before adaptation.

        Args:
            weights: of several checkpoints: each adapts by itself, and their outputs are averaged.

        Returns:
            "loss" and, for classification, "accuracy": [tasks, num_updates + 1].
        """
        members = [weights] if isinstance(weights, dict) else weights

        def of_task(task: Episodes) -> dict[str, tf.Tensor]:
            outcomes = [self.task_metalearn(member, task, num_updates, every_step=True) for member in members]
            outputs = ensemble.mean([[outcome.outputa, *outcome.outputbs] for outcome in outcomes])
            labels = [task.labela] + [task.labelb] * num_updates
            measures = {"loss": tf.stack([self.loss_func(*both) for both in zip(outputs, labels, strict=True)])}
            if self.config.classification:
                accuracies = [losses.accuracy(*both) for both in zip(outputs, labels, strict=True)]
                measures["accuracy"] = tf.stack(accuracies)
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
            last = self.of_step(fast, self.config.num_updates - 1)
            lossb = self.loss_func(self.predict(last, task.inputa, task.inputb), task.labelb)
            yield f"query loss after inner step {self.config.num_updates}", lossb
