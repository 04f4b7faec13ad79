"""MAML written a second time, a task at a time, to hold the model against.

Nothing here comes from the model's code: plain loops over tasks and steps, a convolution of
[images, height, width, channels] with one kernel, batch- and layer-norm from means of squares,
losses from their definitions. It also records on which side of its kink every ReLU and every max
is, so that a test can tell whether two points lie on one smooth piece of the loss.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

Tensors = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the reference needs to know of a network and its training.

    shape: [height, width, channels] of the images, or () for a fully connected network.
    layers: hidden layers, or blocks.
    """

    shape: tuple[int, ...]
    layers: int
    norm: str
    max_pool: bool
    flat_head: bool
    classification: bool
    shots: int
    update_lr: float
    stop_grad: bool

    @classmethod
    def of(cls, model) -> "Setting":
        """The setting of a model, from its public description."""
        network, config = model.network, model.config
        convolutional = network.kind == "conv"
        return cls(
            (network.image_size, network.image_size, network.channels) if convolutional else (),
            4 if convolutional else len(network.dim_hidden),
            network.norm,
            network.max_pool,
            network.flat_head,
            config.classification,
            config.update_batch_size,
            config.update_lr,
            config.stop_grad,
        )


@dataclasses.dataclass
class Kinks:
    """What the ReLUs and maxes of a computation did, in order.

    margins: distance of every ReLU's input from 0, and of every pool's largest input from its second.
    choices: whether each ReLU is open; which input each pool takes.
    names: where each array belongs.
    """

    margins: list[np.ndarray] = dataclasses.field(default_factory=list)
    choices: list[np.ndarray] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, margin, choice) -> None:
        """Appends one layer's."""
        self.names.append(name)
        self.margins.append(np.asarray(margin))
        self.choices.append(np.asarray(choice))

    def same_as(self, other: "Kinks") -> bool:
        """Whether both computations lie on the same smooth piece."""
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self.choices, other.choices, strict=True))


def relu(hidden: tf.Tensor, kinks: Kinks | None, name: str) -> tf.Tensor:
    if kinks is not None:
        kinks.add(f"{name} relu", tf.abs(hidden), hidden > 0)
    return tf.where(hidden > 0, hidden, tf.zeros_like(hidden))


def pool(hidden: tf.Tensor, kinks: Kinks | None, name: str) -> tf.Tensor:
    """The largest of each 2×2 square; a last odd row or column is dropped."""
    images, height, width, channels = hidden.shape
    squares = hidden[:, : height // 2 * 2, : width // 2 * 2]
    squares = tf.reshape(squares, [images, height // 2, 2, width // 2, 2, channels])
    squares = tf.reshape(tf.transpose(squares, [0, 1, 3, 5, 2, 4]), [images, height // 2, width // 2, channels, 4])
    choice = tf.argmax(squares, -1)
    largest = tf.gather(squares, choice, batch_dims=4)
    if kinks is not None:
        first_two = tf.math.top_k(squares, 2).values
        # Where all four are closed ReLUs' zeros, nothing hangs on the choice.
        matters = largest > 0
        margin = tf.where(matters, first_two[..., 0] - first_two[..., 1], np.inf)
        kinks.add(f"{name} pool", margin, tf.where(matters, choice, -1))
    return largest


def norm(hidden: tf.Tensor, weights: Tensors, layer: int, kind: str) -> tf.Tensor:
    if kind == "None":
        return hidden
    every = list(range(len(hidden.shape)))
    axes, epsilon = (every[:-1], 1e-3) if kind == "batch_norm" else (every[1:], 1e-12)
    mean = tf.reduce_mean(hidden, axes, keepdims=True)
    variance = tf.reduce_mean(hidden * hidden, axes, keepdims=True) - mean * mean
    scale = weights[f"model/{layer}/gamma"] if kind == "layer_norm" else 1.0
    return (hidden - mean) / tf.sqrt(variance + epsilon) * scale + weights[f"model/{layer}/beta"]


def forward(setting: Setting, inp: tf.Tensor, weights: Tensors, kinks: Kinks | None = None, where="") -> tf.Tensor:
    """Outputs [examples, dim_output] of one task's [examples, dim_input]."""
    layers = setting.layers
    hidden = tf.reshape(inp, [-1, *setting.shape]) if setting.shape else inp
    for i in range(layers):
        name, bias = f"{where} layer {i + 1}", weights[f"b{i + 1}"]
        if setting.shape:
            stride = 1 if setting.max_pool else 2
            hidden = tf.nn.conv2d(hidden, weights[f"conv{i + 1}"], stride, "SAME") + bias
        else:
            hidden = tf.linalg.matmul(hidden, weights[f"w{i + 1}"]) + bias
        hidden = relu(norm(hidden, weights, i, setting.norm), kinks, name)
        if setting.shape and setting.max_pool:
            hidden = pool(hidden, kinks, name)
    if setting.shape and setting.flat_head:
        hidden = tf.reshape(hidden, [hidden.shape[0], -1])
    elif setting.shape:
        hidden = tf.reduce_sum(hidden, [1, 2]) / (hidden.shape[1] * hidden.shape[2])
    return tf.linalg.matmul(hidden, weights[f"w{layers + 1}"]) + weights[f"b{layers + 1}"]


def loss(setting: Setting, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy summed over the examples and divided by the shot, or mean squared error."""
    if setting.classification:
        likelihoods = tf.reduce_sum(tf.nn.log_softmax(outputs) * labels, 1)
        return -tf.reduce_sum(likelihoods) / setting.shots
    return tf.reduce_mean((outputs - labels) ** 2)


@dataclasses.dataclass
class Adapted:
    """One task's adaptation: support outputs and loss before it, query outputs and losses after each step."""

    weights: Tensors
    outputa: tf.Tensor
    lossa: tf.Tensor
    outputbs: list[tf.Tensor]
    lossesb: list[tf.Tensor]


def adapt(setting: Setting, weights: Tensors, task: Sequence, steps: int, kinks: Kinks | None = None) -> Adapted:
    """Gradient descent on one task's support set; the query set after every step."""
    inputa, labela, inputb, labelb = task
    fast, first, outputbs, lossesb = dict(weights), None, [], []
    for step in range(steps):
        inner = [name for name in fast if "/" not in name]
        with tf.GradientTape() as tape:
            tape.watch([fast[name] for name in inner])
            outputs = forward(setting, inputa, fast, kinks, f"support, step {step + 1},")
            support = loss(setting, outputs, labela)
        first = first or (outputs, support)
        slopes = tape.gradient(support, [fast[name] for name in inner])
        for name, slope in zip(inner, slopes, strict=True):
            fast[name] = fast[name] - setting.update_lr * (tf.stop_gradient(slope) if setting.stop_grad else slope)
        last = step == steps - 1
        outputbs.append(forward(setting, inputb, fast, kinks if last else None, "query,"))
        lossesb.append(loss(setting, outputbs[-1], labelb))
    assert first is not None
    return Adapted(fast, *first, outputbs, lossesb)


def meta_gradient(setting: Setting, weights: Tensors, tasks: Sequence, steps: int) -> tuple[tf.Tensor, Tensors]:
    """The tasks' mean query loss after the last step and its gradient, added up a task at a time."""
    total, gradient = tf.constant(0.0, tf.float64), dict.fromkeys(weights, tf.constant(0.0, tf.float64))
    for task in tasks:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            query = adapt(setting, weights, task, steps).lossesb[-1]
        slopes = tape.gradient(query, weights, unconnected_gradients="zero")
        gradient = {name: gradient[name] + slopes[name] / len(tasks) for name in weights}
        total += query / len(tasks)
    return total, gradient


def find_kinks(setting: Setting, weights: Tensors, tasks: Sequence, steps: int) -> Kinks:
    """What every ReLU and max does on the way to the tasks' last query losses."""
    kinks = Kinks()
    for task in tasks:
        adapt(setting, weights, task, steps, kinks)
    return kinks


def tasks_of(episodes) -> list[tuple]:
    """A batch of tasks as a list of (inputa, labela, inputb, labelb)."""
    return list(zip(*(tf.unstack(tensor) for tensor in episodes), strict=True))
