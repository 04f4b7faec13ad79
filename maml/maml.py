"""Model-agnostic meta-learning (MAML): adaptation to a task, and the gradient through it.

    θ' = θ − α ∇_θ L(θ; support set)            adaptation to a task, one or more steps
    θ ← θ − β ∇_θ Σ_tasks L(θ'; query set)      the meta-update, by Adam

Finn, Abbeel & Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*, ICML 2017,
Algorithm 2; behavior of the official `maml.py`. All of this is about one task; `parallel` goes over a batch of them.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import adam_update
from maml.algorithms.adapting import GradientBased, TrainState, clipped
from maml.config import Config
from maml.data_generator import Episodes
from maml.kernels.recompute import recomputed
from maml.models.official import Network
from maml.models.protocol import Model, Weights
from maml.parallel import dense, mean_gradient


class Outcome(NamedTuple):
    """What adaptation did to one task.

    outputa, lossa: support outputs [N·K, dim_output] and loss [] *before* adaptation.
    outputbs, lossesb: query outputs and losses after steps 1, 2, …; of the last step only, unless all were asked for.
    """

    fast_weights: Weights
    outputa: tf.Tensor
    outputbs: list[tf.Tensor]
    lossa: tf.Tensor
    lossesb: list[tf.Tensor]


class MAML(GradientBased):
    """The learner: a model, its loss, and how both are adapted and meta-trained."""

    def __init__(self, config: Config, model: Model | None = None):
        """Builds the learner for a setting; `model` stands in for the official network."""
        self.config = config
        self.model = model or Network.from_config(config)

    def of(self, config: Config) -> "MAML":
        """The same learner with another setting."""
        return type(self)(config, self.model)

    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor, shots: Any = None) -> tf.Tensor:
        """Loss of one task, [], on the official scale; `shots` is K where it is not the config's."""
        if self.config.classification and self.config.conventions == "maml++":
            return losses.mean_xent(outputs, labels)
        if self.config.classification:
            return losses.xent(outputs, labels, self.config.update_batch_size if shots is None else shots)
        return losses.mse(outputs, labels)

    def inner_step(
        self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, step: int | tf.Tensor = 0, shots: Any = None
    ) -> tuple[Weights, tf.Tensor, tf.Tensor]:
        """One step of gradient descent on the support set [N·K, …]: θ' = θ − α ∇_θ L(θ).

        Args:
            step: how many came before, where each has learned weights of its own.

        Returns:
            θ', and the outputs and the loss of the support set under θ.
        """
        here = self.of_step(weights, step)
        theta = {name: weights[name] for name in weights if name in self.adapted}
        alpha = self.rates(here)
        with tf.GradientTape() as tape:
            tape.watch(theta)
            outputs = self.model.apply(here, inputa)
            loss = self.loss_func(outputs, labela, shots)
        gradients = dense(tape.gradient(loss, theta, unconnected_gradients="zero"))
        if self.config.stop_grad:  # first-order MAML
            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}
        adapted = {name: weight - alpha[name] * gradients[name] for name, weight in theta.items()}
        return weights | adapted, outputs, loss

    def task_metalearn(self, weights: Weights, task: Episodes, num_updates: int, every_step: bool = False) -> Outcome:
        """Adapts to one task's support set in `num_updates` steps and evaluates on its query set.

        Args:
            every_step: evaluate the query set after each step, not only after the last.
        """
        inputa, labela, inputb, labelb = task
        inner_step = recomputed(self.inner_step) if self.config.recompute else self.inner_step
        fast, outputbs, lossesb = weights, [], []
        for step in range(1, num_updates + 1):
            fast, outputs, loss = inner_step(fast, inputa, labela, step - 1)
            if step == 1:
                outputa, lossa = outputs, loss
            if every_step or step == num_updates:
                outputbs.append(self.predict(self.of_step(fast, step - 1), inputa, inputb))
                lossesb.append(self.loss_func(outputbs[-1], labelb))
        return Outcome(fast, outputa, outputbs, lossa, lossesb)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """The fast weights after `num_updates` steps on one task's support set, of any size.

        The K in the loss is the number of support examples / N here, so the loss of a support set of any
        size, balanced or not, is N times its mean, as it is for the shots of the training.
        """
        shots = tf.cast(tf.shape(inputa)[0], inputa.dtype) / labela.shape[-1]
        for step in range(num_updates):
            weights, _, _ = self.inner_step(weights, inputa, labela, step, shots)
        return self.of_step(weights, max(0, num_updates - 1))

    def meta_loss(self, weights: Weights, task: Episodes, epoch: int | tf.Tensor = 0) -> tf.Tensor:
        """One task's query loss after the last inner step, [], or Σ v_k times that after step k (MAML++)."""
        shares = self.step_weights(epoch)
        lossesb = self.task_metalearn(weights, task, self.config.num_updates, shares is not None).lossesb
        return lossesb[-1] if shares is None else tf.reduce_sum(shares * tf.stack(lossesb))

    def pretrain_loss(self, weights: Weights, task: Episodes) -> tf.Tensor:
        """One task's support loss before adaptation, []."""
        return self.loss_func(self.model.apply(self.of_step(weights, 0), task.inputa), task.labela)

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The tasks' mean loss in the phase of this iteration, pre-training or meta-training, and its gradient by θ."""
        return self.of_phase(
            iteration,
            lambda: mean_gradient(self.pretrain_loss, weights, episodes, self.side_by_side),
            lambda: self.meta_gradient(weights, episodes, self.epoch(iteration)),
        )

    def apply(self, state: TrainState, gradients: Weights, iteration: tf.Tensor | int) -> TrainState:
        """One Adam step, by the Adam of the phase; miniImageNet's meta-gradient is clipped before."""

        def step(phase: str) -> TrainState:
            clips = self.config.clips_gradient and phase == "metatrain"
            limited = clipped(gradients) if clips else gradients
            weights, adam = adam_update(state.weights, limited, getattr(state, phase), self.meta_lr(iteration))
            return state._replace(weights=weights, **{phase: adam})

        return self.of_phase(iteration, lambda: step("pretrain"), lambda: step("metatrain"))
