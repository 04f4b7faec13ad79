"""Model-agnostic meta-learning: adaptation to a task, and the gradient through it.

Finn, Abbeel & Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*,
ICML 2017, Algorithm 2; behaviour of the official `maml.py`.

All tasks of a meta-batch are adapted side by side: every tensor has a task axis, and because
no task's loss depends on another task's fast weights, the gradient of the sum of the tasks'
losses is the stack of their gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import adam_init, adam_update
from maml.algorithms.protocol import Column, TrainState
from maml.config import Config
from maml.data_generator import Episodes
from maml.kernels.recompute import recomputed
from maml.models.official import Network, Weights, is_adapted, with_own_gradients
from maml.parallel import map_parts, part_size

GRADIENT_LIMIT = 10.0


class Outcome(NamedTuple):
    """What adaptation did to a batch of tasks.

    fast_weights: adapted weights have a leading task axis.
    outputa, lossesa: support outputs [tasks, N·K, dim_output] and losses [tasks] *before* adaptation.
    outputbs, lossesb: query outputs and losses after steps 1, 2, …; only the last step's unless
        every step's were asked for.
    """

    fast_weights: Weights
    outputa: tf.Tensor
    outputbs: list[tf.Tensor]
    lossesa: tf.Tensor
    lossesb: list[tf.Tensor]


def clipped(gradient: tf.Tensor) -> tf.Tensor:
    """Each element clipped to [−10, 10]; one that is not finite stays so, and is noticed."""
    limited = tf.clip_by_value(gradient, -GRADIENT_LIMIT, GRADIENT_LIMIT)
    return tf.where(tf.math.is_finite(gradient), limited, gradient)


class MAML:
    """The learner: a network, its loss, and how both are adapted and meta-trained."""

    def __init__(self, config: Config, network: Network | None = None):
        """Builds the learner for a setting; `network` stands in for the official one.

        Its layers have to take `ops.Shared` for kernels and matrices, as those of `maml.kernels.ops` do.
        """
        self.config = config
        self.network = network or Network.from_config(config)
        self.forward = self.network.forward
        # Small dense products drown in op dispatch, which XLA removes; XLA's convolutions are slow on the CPU.
        self.compiled = self.network.kind == "fc"

    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor, shots=None) -> tf.Tensor:
        """Loss of every task, [tasks], on the official scale; `shots` is K where it is not the config's."""
        if self.config.classification:
            return losses.xent(outputs, labels, self.config.update_batch_size if shots is None else shots)
        return losses.mse(outputs, labels)

    def inner_step(
        self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, shots=None
    ) -> tuple[Weights, tf.Tensor, tf.Tensor]:
        """One step of gradient descent on the support set: θ' = θ − α ∇_θ L(θ).

        Args:
            weights: θ, shared by the tasks or with a task axis.
            inputa, labela: support sets [tasks, N·K, …].
            shots: K, if it is not the config's.

        Returns:
            θ', and the outputs and losses of the support sets under θ.
        """
        theta = {name: weight for name, weight in weights.items() if is_adapted(name)}
        with tf.GradientTape() as tape:
            theta, used, own = with_own_gradients(theta, inputa.shape[0])
            tape.watch(own)
            outputs = self.forward(inputa, weights | used)
            task_losses = self.loss_func(outputs, labela, shots)
        # As a gradient of −α L it takes a pass over every weight less than −α times the gradient of L.
        minus_alpha = tf.fill(tf.shape(task_losses), tf.constant(-self.config.update_lr, task_losses.dtype))
        descent = tape.gradient(task_losses, own, minus_alpha, unconnected_gradients="zero")
        if self.config.stop_grad:
            descent = {name: tf.stop_gradient(change) for name, change in descent.items()}
        adapted = {name: weight + descent[name] for name, weight in theta.items()}
        return weights | adapted, outputs, task_losses

    def task_metalearn(
        self, weights: Weights, episodes: Episodes, num_updates: int, every_step: bool = False
    ) -> Outcome:
        """Adapts to the support sets in `num_updates` steps and evaluates on the query sets.

        Args:
            weights: θ, shared by all tasks.
            episodes: a batch of tasks.
            num_updates: inner steps.
            every_step: evaluate the query sets after each step, not only after the last.
        """
        inputa, labela, inputb, labelb = episodes
        fast, outputbs, lossesb = weights, [], []
        inner_step = recomputed(self.inner_step) if self.config.recompute else self.inner_step
        for step in range(num_updates):
            fast, outputs, task_losses = inner_step(fast, inputa, labela)
            if step == 0:
                outputa, lossesa = outputs, task_losses
            if every_step or step == num_updates - 1:
                outputbs.append(self.predict(fast, inputa, inputb))
                lossesb.append(self.loss_func(outputbs[-1], labelb))
        return Outcome(fast, outputa, outputbs, lossesa, lossesb)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """The fast weights after `num_updates` steps on support sets of any size.

        The K in the loss is the number of support examples / N here, so the loss of a support set of any
        size, balanced or not, is N times its mean, as it is for the shots of the training.
        """
        shots = tf.cast(tf.shape(inputa)[1], inputa.dtype) / self.network.dim_output
        fast = weights
        for _ in range(num_updates):
            fast, _, _ = self.inner_step(fast, inputa, labela, shots)
        return fast

    def predict(self, fast: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of the query sets `inputb`, [tasks, N·Q, dim_output], under adapted weights.

        Batch-norm standardizes them by their own statistics, or by those of the support sets
        `inputa` under the same weights (`--bn_mode=support`).
        """
        if self.config.bn_mode != "support":
            return self.forward(inputb, fast)
        support = tf.shape(inputa)[1]
        return self.forward(tf.concat([inputa, inputb], 1), fast, support)[:, support:]

    def meta_gradient(self, weights: Weights, episodes: Episodes) -> tuple[tf.Tensor, Weights]:
        """The meta-loss, mean over tasks of the query loss after the last step, and its gradient by θ."""

        def of_part(episodes: Episodes) -> tuple[tf.Tensor, Weights]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outcome = self.task_metalearn(weights, episodes, self.config.num_updates)
                meta_loss = tf.reduce_mean(outcome.lossesb[-1])
            return meta_loss, tape.gradient(meta_loss, weights, unconnected_gradients="zero")

        like = (tf.zeros([], self.config.dtype), weights)
        parts = map_parts(of_part, episodes, part_size(self.network, *episodes.inputa.shape[:2]), like)
        return tf.nest.map_structure(lambda values: tf.reduce_mean(values, 0), parts)

    def pretrain_gradient(self, weights: Weights, episodes: Episodes) -> tuple[tf.Tensor, Weights]:
        """The mean support loss before adaptation, and its gradient by θ."""
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(self.loss_func(self.forward(episodes.inputa, weights), episodes.labela))
        return loss, tape.gradient(loss, weights, unconnected_gradients="zero")

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed, and both Adam states at zero."""
        weights = self.network.construct_weights(self.config.seed)
        return TrainState(weights, adam_init(weights), adam_init(weights))

    def update(self, state: TrainState, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[TrainState, tf.Tensor]:
        """The update of an iteration: of pre-training, or of the meta-training that follows it."""
        return self._of_phase(
            iteration,
            lambda: self.pretrain_update(state, episodes),
            lambda: self.metatrain_update(state, episodes),
        )

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The loss of that update and its gradient, before clipping and Adam."""
        return self._of_phase(
            iteration,
            lambda: self.pretrain_gradient(weights, episodes),
            lambda: self.meta_gradient(weights, episodes),
        )

    def _of_phase(self, iteration: tf.Tensor, pretrain: Callable, metatrain: Callable) -> Any:
        pretraining = self.config.pretraining
        if pretraining in (0, self.config.total_iterations):
            return pretrain() if pretraining else metatrain()
        return tf.cond(iteration < pretraining, pretrain, metatrain)

    def metatrain_update(self, state: TrainState, episodes: Episodes) -> tuple[TrainState, tf.Tensor]:
        """One Adam step on the meta-loss; returns the loss before it."""
        loss, gradients = self.meta_gradient(state.weights, episodes)
        if self.config.clips_gradient:
            gradients = {name: clipped(gradient) for name, gradient in gradients.items()}
        weights, adam = adam_update(state.weights, gradients, state.metatrain, self.config.meta_lr)
        return state._replace(weights=weights, metatrain=adam), loss

    def pretrain_update(self, state: TrainState, episodes: Episodes) -> tuple[TrainState, tf.Tensor]:
        """One Adam step on the pre-update loss; returns the loss before it."""
        loss, gradients = self.pretrain_gradient(state.weights, episodes)
        weights, adam = adam_update(state.weights, gradients, state.pretrain, self.config.meta_lr)
        return state._replace(weights=weights, pretrain=adam), loss

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

        def of_part(episodes: Episodes) -> dict[str, tf.Tensor]:
            outcome = self.task_metalearn(weights, episodes, num_updates, every_step=True)
            measures = {"loss": tf.stack([outcome.lossesa, *outcome.lossesb], 1)}
            if self.config.classification:
                before = losses.accuracy(outcome.outputa, episodes.labela)
                after = [losses.accuracy(outputs, episodes.labelb) for outputs in outcome.outputbs]
                measures["accuracy"] = tf.stack([before, *after], 1)
            return measures

        size = part_size(self.network, *episodes.inputa.shape[:2])
        measure = tf.zeros([size, num_updates + 1], self.config.dtype)
        like = {"loss": measure} | ({"accuracy": measure} if self.config.classification else {})
        parts = map_parts(of_part, episodes, size, like)
        return {name: tf.reshape(values, [-1, num_updates + 1]) for name, values in parts.items()}
