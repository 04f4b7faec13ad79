"""Reptile: adapt to tasks by plain minibatch training, and move the initialization toward where that led.

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
- Every weight is adapted and moved, the shifts of the normalization, too.

The network is MAML's, but for Omniglot, too, the head reads the flattened last map, as in the
paper. The paper's batch-norm has a scale besides, which is left out here: a ReLU and a linear map
follow it, so the same functions can be learned. The paper's miniImageNet network pools before
batch-norm, and its pooling keeps the odd row and column that MAML's drops.
"""

import dataclasses
import functools
from typing import NamedTuple

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.adam import BETA_2, EPSILON
from maml.algorithms.adapting import Adapting
from maml.algorithms.protocol import Column
from maml.config import Config
from maml.data_generator import WHOLE, Episodes, Part, random_orders
from maml.models.official import Network
from maml.models.protocol import Model, Weights
from maml.parallel import exact, map_tasks

# Beside the numbers of the splits, from which the episodes are drawn.
TRAINING, TESTING = 3, 4


class ReptileState(NamedTuple):
    """Everything that a training changes."""

    weights: Weights


class Task(NamedTuple):
    """What the weights are adapted to.

    inputs, labels: [examples, …].
    order: int32 [steps, minibatch], the examples of every minibatch.
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    order: tf.Tensor


class Adapted(NamedTuple):
    """What the inner steps made of one task, or of a batch of tasks, with a leading task axis then.

    weights: θ_k.
    v: Adam's running means of the squared gradients; empty with SGD.
    loss: mean over the steps of the loss before the step, [].
    """

    weights: Weights
    v: Weights
    loss: tf.Tensor


class Reptile(Adapting):
    """The learner: a model, its loss, and how both are adapted and meta-trained.

    The weights that its methods take and return are those of the model and, where the inner
    optimizer is Adam, its state: `adam/v/<name>`, running means of squared gradients, and
    `adam/step`, the inner steps of all tasks so far. A new task's adaptation starts from both.
    """

    side_by_side = False  # a task's loop over minibatches does not fit into one operation

    def __init__(self, config: Config, model: Model | None = None, part: Part = WHOLE):
        """Builds the learner for a setting, or for a part of its batches; `model` stands in for the paper's."""
        self.config, self.part = config, part
        self.model = model or dataclasses.replace(Network.from_config(config), flat_head=True)

    def of_part(self, part: Part) -> "Reptile":
        """The learner of a part of each batch: Adam's state is handed on from task to task."""
        return Reptile(self.config, self.model, part)

    def loss_func(self, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Mean loss of one task, []: cross-entropy, or squared error for regression."""
        return (losses.mean_xent if self.config.classification else losses.mse)(outputs, labels)

    def inner_step(
        self, theta: Weights, v: Weights, step: tf.Tensor, inputs: tf.Tensor, labels: tf.Tensor
    ) -> tuple[Weights, Weights, tf.Tensor]:
        """One step on a minibatch of one task.

        SGD: θ ← θ − α g. Adam with β₁ = 0, in the form of TensorFlow 1:
        v ← β₂ v + (1 − β₂) g², θ ← θ − α √(1 − β₂ᵗ) · g / (√v + ε).

        Args:
            step: t − 1.
            inputs, labels: [minibatch, …].

        Returns:
            θ, v, and the loss [] before the step.
        """
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss = self.loss_func(self.model.apply(theta, inputs), labels)
        gradients = tape.gradient(loss, theta, unconnected_gradients="zero")
        rate = self.config.update_lr
        if self.config.inner_optimizer == "sgd":
            return {name: weight - rate * gradients[name] for name, weight in theta.items()}, v, loss
        rate *= tf.sqrt(1 - tf.pow(tf.constant(BETA_2, self.config.dtype), step + 1))
        return *_adam(theta, v, gradients, rate), loss

    def adapt_task(self, weights: Weights, task: Task) -> Adapted:
        """Takes the minibatch steps of one task."""
        steps = task.order.shape[0]
        theta, v, step = _split(weights)

        def one(i, theta, v, loss):
            inputs, labels = (tf.gather(tensor, task.order[i]) for tensor in (task.inputs, task.labels))
            theta, v, before = self.inner_step(theta, v, step + tf.cast(i, step.dtype), inputs, labels)
            return i + 1, theta, v, loss + before / steps

        start = (tf.constant(0), theta, v, tf.zeros([], self.config.dtype))
        return Adapted(*tf.while_loop(lambda i, *_: i < steps, one, start, parallel_iterations=1)[1:])

    def init_state(self) -> ReptileState:
        """Fresh weights from the config's seed; Adam before its first step."""
        weights = self.model.init(self.config.seed)
        if self.config.inner_optimizer == "adam":
            v = {f"adam/v/{name}": tf.zeros_like(weight) for name, weight in weights.items()}
            weights |= v | {"adam/step": tf.zeros([], self.config.dtype)}
        return ReptileState(weights)

    def meta_step(self, iteration: tf.Tensor | int) -> tf.Tensor:
        """ε, linear from `meta_step` for the first update to `meta_step_final` after the last."""
        config = self.config
        done = tf.cast(iteration, config.dtype) / config.metatrain_iterations
        return (1 - done) * config.meta_step + done * config.meta_step_final

    def gradient(self, weights: Weights, episodes: Episodes, iteration: tf.Tensor | int) -> tuple[tf.Tensor, Weights]:
        """The mean loss of the minibatches, and what is taken for the gradient, φ − mean θ_k, in float64.

        For Adam's state it is what is to be subtracted from it, likewise.
        """
        config, (tasks, examples) = self.config, episodes.inputa.shape[:2]
        count = tasks * self.part.parts
        key = tf.random.experimental.stateless_fold_in([config.seed, TRAINING], iteration, alg="philox")
        order = minibatches(key, count, examples, config.inner_iters, config.inner_batch)
        theta, v, _ = _split(weights)
        adapted = map_tasks(
            lambda task: self.adapt_task(weights, task),
            Task(episodes.inputa, episodes.labela, self.part.of(order)),
            Adapted(theta, v, tf.TensorSpec([], config.dtype)),
        )
        theta, v, adapted = exact((theta, v, adapted))
        gradients = {name: theta[name] - tf.reduce_mean(after, 0) for name, after in adapted.weights.items()}
        if v:
            after = {name: after_all(v[name], adapted.v[name], config.inner_iters, self.part) for name in v}
            gradients |= {f"adam/v/{name}": v[name] - after[name] for name in v}
            gradients["adam/step"] = tf.constant(-config.inner_iters * count, tf.float64)
        return tf.reduce_mean(adapted.loss), gradients

    def apply(self, state: ReptileState, gradients: Weights, iteration: tf.Tensor | int) -> ReptileState:
        """φ ← φ − ε (φ − mean θ_k); Adam's state becomes what the inner steps made of it."""
        epsilon = self.meta_step(iteration)
        moved = {
            name: weight - (1 if name.startswith("adam/") else epsilon) * gradients[name]
            for name, weight in state.weights.items()
        }
        return ReptileState(moved)

    def adapt(self, weights: Weights, inputa: tf.Tensor, labela: tf.Tensor, num_updates: int) -> Weights:
        """The model's weights after `num_updates` minibatch steps on one task's support set, of any size.

        All tasks take their minibatches in the same order: a task's result depends on it alone.
        """
        examples = inputa.shape[0] or tf.shape(inputa)[0]
        order = minibatches([self.config.seed, TESTING], 1, examples, num_updates, self.config.eval_inner_batch)
        return self.adapt_task(weights, Task(inputa, labela, order[0])).weights

    def predict_alone(self, fast: Weights, inputa: tf.Tensor, inputb: tf.Tensor) -> tf.Tensor:
        """Outputs of one task's query set, each query in a batch with nothing but the support set.

        The paper's plain setting: a query's companions tell nothing about it.
        """
        alone = tf.autograph.experimental.do_not_convert(
            lambda query: self.model.apply(fast, tf.concat([inputa, query[None]], 0))[-1]
        )
        return tf.map_fn(alone, inputb, parallel_iterations=1)

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

        def of_task(task: Episodes) -> dict[str, tf.Tensor]:
            inputa, labela, inputb, labelb = task
            before, _, _ = _split(weights)
            fast = self.adapt(weights, inputa, labela, num_updates)
            results = [(self.model.apply(before, inputa), labela), (self.predict(fast, inputa, inputb), labelb)]
            if columns == 3:
                results.append((self.predict_alone(fast, inputa, inputb), labelb))
            measures = {"loss": self.loss_func, "accuracy": losses.accuracy}
            return {name: tf.stack([of(*result) for result in results]) for name, of in measures.items()}

        like = dict.fromkeys(("loss", "accuracy"), tf.TensorSpec([columns], self.config.dtype))
        return map_tasks(of_task, episodes, like)


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


def after_all(before: tf.Tensor, after: tf.Tensor, steps: int, part: Part = WHOLE) -> tf.Tensor:
    """Adam's running mean after all tasks, as if they had been adapted one after another.

    The k steps of task b add v_b − β₂ᵏ v, which every later task's k steps shrink by β₂ᵏ.

    Args:
        before: v, from which all tasks started.
        after: v_b of every task, [tasks, …].
        steps: k.
        part: that the tasks are; the mean of what is returned for all parts is that of the whole batch.
    """
    tasks = after.shape[0] * part.parts
    later = part.of(tf.constant([BETA_2 ** (steps * (tasks - 1 - task)) for task in range(tasks)], before.dtype))
    own = after - BETA_2**steps * before
    return BETA_2 ** (steps * tasks) * before + part.parts * tf.tensordot(later, own, 1)


@functools.partial(tf.function, jit_compile=True, autograph=False)  # one pass over the weights
def _adam(theta: Weights, v: Weights, gradients: Weights, rate: tf.Tensor) -> tuple[Weights, Weights]:
    v = {name: BETA_2 * v[name] + (1 - BETA_2) * tf.square(gradient) for name, gradient in gradients.items()}
    return {name: w - rate * gradients[name] / (tf.sqrt(v[name]) + EPSILON) for name, w in theta.items()}, v


def _split(weights: Weights) -> tuple[Weights, Weights, tf.Tensor]:
    """The network's weights, Adam's v by the same names, and its step; {} and 0 with SGD."""
    theta = {name: weight for name, weight in weights.items() if not name.startswith("adam/")}
    v = {name: weights[f"adam/v/{name}"] for name in theta if f"adam/v/{name}" in weights}
    return theta, v, weights.get("adam/step", tf.constant(0.0))
