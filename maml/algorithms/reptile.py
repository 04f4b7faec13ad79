"""Reptile: adapt to tasks by plain minibatch training, and move the initialisation towards where that led.

Nichol, Achiam & Schulman, *On First-Order Meta-Learning Algorithms*, 2018 (arXiv 1803.02999), in its
batched form, and the code of its authors (openai/supervised-reptile):

    φ ← φ + ε · mean over tasks of (θ_k − φ),

where θ_k is what k minibatch steps make of φ, and the meta-step ε falls linearly over the training.

What a reader might not expect, all of it as in that code:

- The inner optimizer is Adam with β₁ = 0, and its state is carried from task to task: its running
  means of squared gradients outlive the inner loop. A test starts from those of the training
  and leaves no trace in them.
- The inner loss is the *mean* cross-entropy of a minibatch, where the official MAML code's is a sum
  over the classes.
- A task's images are shuffled and gone through again and again; a minibatch may end one round and
  begin the next.
- Every weight is adapted and moved, the shifts of the normalisation, too.

The network is MAML's, but for Omniglot, too, the head reads the flattened last map, as in the
paper. The paper's batch-norm has a scale besides, which is left out here: a ReLU and a linear map
follow it, so the same functions can be learned. The paper's miniImageNet network pools before
batch-norm, and its pooling keeps the odd row and column that MAML's drops.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import BETA_2, EPSILON, adam_init
from maml.algorithms.protocol import Column, TrainState
from maml.config import Config
from maml.data_generator import Episodes, random_orders
from maml.kernels.ops import fused
from maml.models.official import Network, Weights
from maml.parallel import map_parts, part_size

# Beside the numbers of the splits, from which the episodes are drawn.
TRAINING, TESTING = 3, 4


class Tasks(NamedTuple):
    """What a batch of tasks is adapted to.

    inputs, labels: [tasks, examples, …].
    order: int32 [tasks, steps, minibatch], the examples of every minibatch.
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    order: tf.Tensor


class Adapted(NamedTuple):
    """What the inner steps made of a batch of tasks; every tensor has a leading task axis.

    weights: θ_k.
    v: Adam's running means of the squared gradients; empty with SGD.
    loss: mean over the steps of the loss before the step, [tasks].
    """

    weights: Weights
    v: Weights
    loss: tf.Tensor


class Reptile:
    """The learner: a network, its loss, and how both are adapted and meta-trained.

    The weights that its methods take and return are those of the network and, where the inner
    optimizer is Adam, its state: `adam/v/<name>`, running means of squared gradients, and
    `adam/step`, the inner steps of all tasks so far. A new task's adaptation starts from both.
    """

    def __init__(self, config: Config, network: Network | None = None):
        """Builds the learner for a setting; `network` stands in for the paper's."""
        self.config = config
        self.network = network or dataclasses.replace(Network.from_config(config), flat_head=True)
        self.forward = self.network.forward
        self.compiled = self.network.kind == "fc"

    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Mean loss of every task, [tasks]: cross-entropy, or squared error for regression."""
        if self.config.classification:
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, outputs), 1)
        return losses.mse(outputs, labels)

    def inner_step(
        self, theta: Weights, v: Weights, step: tf.Tensor, inputs: tf.Tensor, labels: tf.Tensor
    ) -> tuple[Weights, Weights, tf.Tensor]:
        """One step on a minibatch of every task.

        SGD: θ ← θ − α g. Adam with β₁ = 0, in the form of TensorFlow 1:
        v ← β₂ v + (1 − β₂) g², θ ← θ − α √(1 − β₂ᵗ) · g / (√v + ε).

        Args:
            theta, v: with a task axis.
            step: t − 1.
            inputs, labels: [tasks, minibatch, …].

        Returns:
            θ, v, and the losses [tasks] before the step.
        """
        with tf.GradientTape() as tape:
            tape.watch(theta)
            task_losses = self.loss_func(self.forward(inputs, theta), labels)
        gradients = tape.gradient(task_losses, theta, unconnected_gradients="zero")
        rate = self.config.update_lr
        if self.config.inner_optimizer == "sgd":
            return {name: weight - rate * gradients[name] for name, weight in theta.items()}, v, task_losses
        rate *= tf.sqrt(1 - tf.pow(tf.constant(BETA_2, self.config.dtype), step + 1))
        return *_adam(theta, v, gradients, rate), task_losses

    def adapt_tasks(self, weights: Weights, tasks: Tasks) -> Adapted:
        """Takes the minibatch steps of every task, side by side."""
        count, steps = tasks.order.shape[:2]
        theta, v, step = _split(weights)
        theta, v = tf.nest.map_structure(lambda tensor: tf.broadcast_to(tensor, [count, *tensor.shape]), (theta, v))

        def one(i, theta, v, loss):
            inputs, labels = (
                tf.gather(tensor, tasks.order[:, i], batch_dims=1) for tensor in (tasks.inputs, tasks.labels)
            )
            theta, v, task_losses = self.inner_step(theta, v, step + tf.cast(i, step.dtype), inputs, labels)
            return i + 1, theta, v, loss + task_losses / steps

        start = (tf.constant(0), theta, v, tf.zeros([count], self.config.dtype))
        _, theta, v, loss = tf.while_loop(lambda i, *_: i < steps, one, start, parallel_iterations=1)
        return Adapted(theta, v, loss)

    def init_state(self) -> TrainState:
        """Fresh weights from the config's seed; Adam before its first step."""
        weights = self.network.construct_weights(self.config.seed)
        if self.config.inner_optimizer == "adam":
            v = {f"adam/v/{name}": tf.zeros_like(weight) for name, weight in weights.items()}
            weights |= v | {"adam/step": tf.zeros([], self.config.dtype)}
        return TrainState(weights, adam_init({}), adam_init({}))

    def meta_step(self, iteration: tf.Tensor) -> tf.Tensor:
        """ε, linear from `meta_step` for the first update to `meta_step_final` after the last."""
        config = self.config
        done = tf.cast(iteration, config.dtype) / config.metatrain_iterations
        return (1 - done) * config.meta_step + done * config.meta_step_final

    def update(self, state: TrainState, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[TrainState, tf.Tensor]:
        """One meta-update on the support sets; returns the mean loss of their minibatches, too."""
        theta, v, step = _split(state.weights)
        adapted, epsilon = self._adapt_batch(state.weights, episodes, iteration), self.meta_step(iteration)
        weights = {name: w + epsilon * (tf.reduce_mean(adapted.weights[name], 0) - w) for name, w in theta.items()}
        if v:
            steps = self.config.inner_iters
            weights |= {f"adam/v/{name}": after_all(v[name], adapted.v[name], steps) for name in v}
            weights["adam/step"] = step + steps * episodes.inputa.shape[0]
        return state._replace(weights=weights), tf.reduce_mean(adapted.loss)

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """That loss, and what the meta-update takes for the gradient: φ − mean θ_k."""
        adapted = self._adapt_batch(weights, episodes, iteration)
        gradients = {name: weights[name] - tf.reduce_mean(theta, 0) for name, theta in adapted.weights.items()}
        return tf.reduce_mean(adapted.loss), gradients

    def _adapt_batch(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> Adapted:
        config, (count, examples) = self.config, episodes.inputa.shape[:2]
        key = tf.random.experimental.stateless_fold_in([config.seed, TRAINING], iteration, alg="philox")
        order = minibatches(key, count, examples, config.inner_iters, config.inner_batch)
        size = part_size(self.network, count, config.inner_batch)
        theta, v, _ = _split(weights)
        like = tf.nest.map_structure(lambda tensor: tf.TensorSpec([size, *tensor.shape], tensor.dtype), (theta, v))
        adapted = map_parts(
            lambda tasks: self.adapt_tasks(weights, tasks),
            Tasks(episodes.inputa, episodes.labela, order),
            size,
            Adapted(like[0], like[1], tf.TensorSpec([size], config.dtype)),
        )
        return tf.nest.map_structure(lambda tensor: tf.reshape(tensor, [count, *tensor.shape[2:]]), adapted)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """The network's weights after `num_updates` minibatch steps on support sets of any size, with a task axis.

        All tasks take their minibatches in the same order: a task's result depends on it alone.
        """
        examples = inputa.shape[1] or tf.shape(inputa)[1]
        order = minibatches([self.config.seed, TESTING], 1, examples, num_updates, self.config.eval_inner_batch)
        order = tf.repeat(order, inputa.shape[0], 0)
        return self.adapt_tasks(weights, Tasks(inputa, labela, order)).weights

    def predict(self, fast: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of the query sets `inputb`, [tasks, N·Q, dim_output], under adapted weights.

        Batch-norm standardizes all queries together, or by the support sets' statistics (`--bn_mode=support`).
        """
        if self.config.bn_mode != "support":
            return self.forward(inputb, fast)
        support = tf.shape(inputa)[1]
        return self.forward(tf.concat([inputa, inputb], 1), fast, support)[:, support:]

    def predict_alone(self, fast: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of the query sets, each query in a batch with nothing but the support set.

        The paper's plain setting: a query's companions tell nothing about it.
        """

        def alone(query: tf.Tensor) -> tf.Tensor:
            return self.forward(tf.concat([inputa, query[:, None]], 1), fast)[:, -1]

        queries = tf.transpose(inputb, [1, 0, 2])
        spec = tf.TensorSpec([inputb.shape[0], self.network.dim_output], inputb.dtype)
        outputs = tf.map_fn(alone, queries, parallel_iterations=1, fn_output_signature=spec)
        return tf.transpose(outputs, [1, 0, 2])

    def columns(self, num_updates: int) -> list[Column]:
        """The support set before adaptation and the query set after it; in a test also every query by itself."""
        how = "transductive" if self.config.transductive else "query set"
        columns = [
            Column("before, support set", "before", "Pre-update"),
            Column(f"{num_updates} steps, {how}", "together", "Post-update"),
        ]
        if self.config.transductive and not self.config.train:
            columns.append(Column(f"{num_updates} steps, one at a time", "alone", "Post-update, one at a time"))
        return columns

    @property
    def reported(self) -> tuple[int, int]:
        """Before adaptation and after it."""
        return 0, 1

    def evaluate(self, weights: Weights, episodes: Episodes, num_updates: int) -> dict[str, tf.Tensor]:
        """Losses and accuracies of every task, a column for each of `columns`.

        Of support sets that are larger than a test's, those of training, the first
        `update_batch_size` examples of every class are used.
        """
        shots = self.config.num_classes * self.config.update_batch_size
        episodes = episodes._replace(inputa=episodes.inputa[:, :shots], labela=episodes.labela[:, :shots])
        columns = len(self.columns(num_updates))

        def of_part(part: Episodes) -> dict[str, tf.Tensor]:
            inputa, labela, inputb, labelb = part
            before, _, _ = _split(weights)
            fast = self.adapt(weights, inputa, labela, num_updates)
            results = [(self.forward(inputa, before), labela), (self.predict(fast, inputa, inputb), labelb)]
            if columns == 3:
                results.append((self.predict_alone(fast, inputa, inputb), labelb))
            measures = {"loss": self.loss_func, "accuracy": losses.accuracy}
            return {name: tf.stack([of(*result) for result in results], 1) for name, of in measures.items()}

        size = part_size(self.network, *episodes.inputa.shape[:2])
        like = dict.fromkeys(("loss", "accuracy"), tf.TensorSpec([size, columns], self.config.dtype))
        parts = map_parts(of_part, episodes, size, like)
        return {name: tf.reshape(values, [-1, columns]) for name, values in parts.items()}


def minibatches(key, tasks: int, examples: int | tf.Tensor, steps: int, size: int) -> tf.Tensor:
    """The examples of every minibatch: a task's examples in a random order, then in another, and so on.

    Args:
        key: of the random orders, two integers.
        examples: of a task.

    Returns:
        int32 [tasks, steps, size].
    """
    rounds = 1 + steps * size // examples
    order = tf.reshape(random_orders(key, [tasks, rounds, examples]), [tasks, -1])
    return tf.reshape(order[:, : steps * size], [tasks, steps, size])


def after_all(before: tf.Tensor, after: tf.Tensor, steps: int) -> tf.Tensor:
    """Adam's running mean after all tasks, as if they had been adapted one after another.

    The k steps of task b add v_b − β₂ᵏ v, which every later task's k steps shrink by β₂ᵏ.

    Args:
        before: v, from which all tasks started.
        after: v_b of every task, [tasks, …].
        steps: k.
    """
    tasks = after.shape[0]
    later = [BETA_2 ** (steps * (tasks - 1 - task)) for task in range(tasks)]
    own = after - BETA_2**steps * before
    return BETA_2 ** (steps * tasks) * before + tf.tensordot(tf.constant(later, before.dtype), own, 1)


@fused
def _adam(theta: Weights, v: Weights, gradients: Weights, rate: tf.Tensor) -> tuple[Weights, Weights]:
    v = {name: BETA_2 * v[name] + (1 - BETA_2) * tf.square(gradient) for name, gradient in gradients.items()}
    return {name: w - rate * gradients[name] / (tf.sqrt(v[name]) + EPSILON) for name, w in theta.items()}, v


def _split(weights: Weights) -> tuple[Weights, Weights, tf.Tensor]:
    """The network's weights, Adam's v by the same names, and its step; {} and 0 with SGD."""
    theta = {name: weight for name, weight in weights.items() if not name.startswith("adam/")}
    v = {name: weights[f"adam/v/{name}"] for name in theta if f"adam/v/{name}" in weights}
    return theta, v, weights.get("adam/step", tf.constant(0.0))
