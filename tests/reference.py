"""MAML written a second time, a task at a time, to hold the model against.

Nothing here comes from the model's code: plain loops over tasks and steps, a convolution of
[images, height, width, channels] with one kernel, batch- and layer-norm from means of squares,
losses from their definitions. It also records on which side of its non-smooth point every ReLU and every max
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
        network, config = model.model, model.config
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
class NonSmooth:
    """On which side of its non-smooth point every ReLU and every max of a computation is, as far as it matters.

    names: a layer's place in the computation.
    margins: how far its units are from their non-smooth points (from zero, or from the second largest).
    choices: what they chose (open, or which of the window).
    """

    names: list[str] = dataclasses.field(default_factory=list)
    margins: list[np.ndarray] = dataclasses.field(default_factory=list)
    choices: list[np.ndarray] = dataclasses.field(default_factory=list)

    def record(self, name: str, hidden: tf.Tensor, pooled: bool) -> None:
        """Appends a layer: the input of its ReLU, and whether 2×2 pooling follows."""
        if pooled:
            # Only a window's largest goes on, and where it is a closed ReLU's zero nothing hangs on the choice.
            first_two = tf.math.top_k(windows(hidden), 2)
            hidden = first_two.values[..., 0]
            gap = tf.where(hidden > 0, hidden - first_two.values[..., 1], np.inf)
            self._append(f"{name} max", gap, tf.where(hidden > 0, first_two.indices[..., 0], -1))
        self._append(f"{name} ReLU", tf.abs(hidden), hidden > 0)

    def _append(self, name: str, margin, choice) -> None:
        self.names.append(name)
        self.margins.append(np.asarray(margin))
        self.choices.append(np.asarray(choice))

    def same_as(self, other: "NonSmooth") -> bool:
        """Whether both computations lie on the same smooth piece."""
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self.choices, other.choices, strict=True))

    def near(self, distance: float) -> list[str]:
        """The units nearer to their non-smooth points than `distance`, nearest first."""
        found = []
        for name, margin in zip(self.names, self.margins, strict=True):
            found += [(margin[tuple(unit)], f"{name} {unit.tolist()}") for unit in np.argwhere(margin < distance)]
        return [f"{name}: {margin:.1e}" for margin, name in sorted(found)]


def windows(hidden: tf.Tensor) -> tf.Tensor:
    """The 2×2 windows, [images, height // 2, width // 2, channels, 4]; a last odd row or column is dropped."""
    images, height, width, channels = hidden.shape
    hidden = tf.reshape(
        hidden[:, : height // 2 * 2, : width // 2 * 2], [images, height // 2, 2, width // 2, 2, channels]
    )
    return tf.reshape(tf.transpose(hidden, [0, 1, 3, 5, 2, 4]), [images, height // 2, width // 2, channels, 4])


def relu(hidden: tf.Tensor) -> tf.Tensor:
    return tf.where(hidden > 0, hidden, tf.zeros_like(hidden))


def pool(hidden: tf.Tensor) -> tf.Tensor:
    """The largest of each window; of equals the first."""
    members = windows(hidden)
    return tf.gather(members, tf.argmax(members, -1), batch_dims=4)


def norm(hidden: tf.Tensor, weights: Tensors, layer: int, kind: str) -> tf.Tensor:
    if kind == "None":
        return hidden
    every = list(range(len(hidden.shape)))
    axes, epsilon = (every[:-1], 1e-3) if kind == "batch_norm" else (every[1:], 1e-12)
    mean = tf.reduce_mean(hidden, axes, keepdims=True)
    variance = tf.reduce_mean(hidden * hidden, axes, keepdims=True) - mean * mean
    scale = weights[f"model/{layer}/gamma"] if kind == "layer_norm" else 1.0
    return (hidden - mean) / tf.sqrt(variance + epsilon) * scale + weights[f"model/{layer}/beta"]


def forward(
    setting: Setting, inp: tf.Tensor, weights: Tensors, nonsmooth: NonSmooth | None = None, where=""
) -> tf.Tensor:
    """Outputs [examples, dim_output] of one task's [examples, dim_input]."""
    layers, pooled = setting.layers, bool(setting.shape) and setting.max_pool
    hidden = tf.reshape(inp, [-1, *setting.shape]) if setting.shape else inp
    for i in range(layers):
        if setting.shape:
            hidden = tf.nn.conv2d(hidden, weights[f"conv{i + 1}"], 1 if pooled else 2, "SAME")
        else:
            hidden = tf.linalg.matmul(hidden, weights[f"w{i + 1}"])
        hidden = norm(hidden + weights[f"b{i + 1}"], weights, i, setting.norm)
        if nonsmooth is not None:
            nonsmooth.record(f"{where}layer {i + 1}", hidden, pooled)
        hidden = pool(relu(hidden)) if pooled else relu(hidden)
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


def adapt(
    setting: Setting, weights: Tensors, task: Sequence, steps: int, nonsmooth: NonSmooth | None = None, where=""
) -> Adapted:
    """Gradient descent on one task's support set; the query set after every step."""
    inputa, labela, inputb, labelb = task
    fast, first, outputbs, lossesb = dict(weights), None, [], []
    for step in range(1, steps + 1):
        inner = [name for name in fast if "/" not in name]
        with tf.GradientTape() as tape:
            tape.watch([fast[name] for name in inner])
            outputs = forward(setting, inputa, fast, nonsmooth, f"{where}support set, step {step}, ")
            support = loss(setting, outputs, labela)
        first = first or (outputs, support)
        slopes = tape.gradient(support, [fast[name] for name in inner])
        for name, slope in zip(inner, slopes, strict=True):
            fast[name] = fast[name] - setting.update_lr * (tf.stop_gradient(slope) if setting.stop_grad else slope)
        outputbs.append(forward(setting, inputb, fast, nonsmooth if step == steps else None, f"{where}query set, "))
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


def find_nonsmooth(setting: Setting, weights: Tensors, tasks: Sequence, steps: int) -> NonSmooth:
    """What every ReLU and max does on the way to the tasks' last query losses; with 0 steps, to the support losses."""
    nonsmooth = NonSmooth()
    for index, task in enumerate(tasks):
        if steps:
            adapt(setting, weights, task, steps, nonsmooth, f"task {index}, ")
        else:
            forward(setting, task[0], weights, nonsmooth, f"task {index}, support set, ")
    return nonsmooth


def tasks_of(episodes) -> list[tuple]:
    """A batch of tasks as a list of (inputa, labela, inputb, labelb)."""
    return list(zip(*(tf.unstack(tensor) for tensor in episodes), strict=True))
