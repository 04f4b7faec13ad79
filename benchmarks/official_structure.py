"""A meta-update in the structure of the official code, written with TensorFlow 2's own means.

`tf.map_fn` goes over the tasks; inside, one task at a time has its own convolutions, plain exact
batch-norm and nested gradient tapes; around it stand the clipping and Adam. This is what one
writes who carries the official graph over as it stands, and what `benchmarks.speed` compares with.

What is computed: the support loss and its gradient at each of the K inner steps, the query loss
after the last one, and the meta-gradient of that. The official graph computes more in every
meta-update, namely the query losses after every step of max(num_updates, test_num_updates);
`every_step` adds them (their gradient is not taken there either). Timings leave them out, which
favors this structure.

Source: the official `maml.py` (`construct_model`, `task_metalearn`, `forward_*`) and `utils.py`
(`conv_block`, `normalize`). No code of `maml.kernels.ops` or of the forward passes of `maml.models.official`.
"""

import tensorflow as tf

from maml.algorithms.adam import AdamState, adam_update
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.official import Network, Weights

GRADIENT_LIMIT = 10.0
BATCH_NORM_EPSILON = 0.001
LAYER_NORM_EPSILON = 1e-12


def normalize(inp: tf.Tensor, weights: Weights, layer: int, norm: str) -> tf.Tensor:
    """Batch-norm (a shift, no scale) or layer-norm (both) of one task's [examples, …, channels]."""
    if norm == "None":
        return inp
    axes = list(range(len(inp.shape)))
    axes = axes[:-1] if norm == "batch_norm" else axes[1:]
    mean = tf.reduce_mean(inp, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(inp - mean), axes, keepdims=True)
    shift = weights[f"model/{layer}/beta"]
    if norm == "batch_norm":
        return (inp - mean) * tf.math.rsqrt(variance + BATCH_NORM_EPSILON) + shift
    return (inp - mean) * tf.math.rsqrt(variance + LAYER_NORM_EPSILON) * weights[f"model/{layer}/gamma"] + shift


def forward_fc(network: Network, weights: Weights, inp: tf.Tensor) -> tf.Tensor:
    """Outputs [examples, dim_output] of one task's [examples, dim_input]."""
    layers = len(network.dim_hidden) + 1
    for i in range(1, layers):
        hidden = tf.matmul(inp, weights[f"w{i}"]) + weights[f"b{i}"]
        inp = tf.nn.relu(normalize(hidden, weights, i - 1, network.norm))
    return tf.matmul(inp, weights[f"w{layers}"]) + weights[f"b{layers}"]


def forward_conv(network: Network, weights: Weights, inp: tf.Tensor) -> tf.Tensor:
    """Outputs [examples, dim_output] of one task's flat images [examples, dim_input]."""
    size = network.image_size
    hidden = tf.reshape(inp, [-1, size, size, network.channels])
    for i in range(1, 5):
        hidden = tf.nn.conv2d(hidden, weights[f"conv{i}"], 1 if network.max_pool else 2, "SAME") + weights[f"b{i}"]
        hidden = tf.nn.relu(normalize(hidden, weights, i - 1, network.norm))
        if network.max_pool:
            hidden = tf.nn.max_pool2d(hidden, 2, 2, "VALID")
    hidden = tf.reshape(hidden, [hidden.shape[0], -1]) if network.flat_head else tf.reduce_mean(hidden, [1, 2])
    return tf.matmul(hidden, weights["w5"]) + weights["b5"]


def loss_func(config: Config, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """One task's loss: cross-entropy summed and divided by the shot, or the mean squared error."""
    if config.classification:
        losses = tf.nn.softmax_cross_entropy_with_logits(labels, outputs)
        return tf.reduce_sum(losses) / config.update_batch_size
    return tf.reduce_mean(tf.square(outputs - labels))


def task_metalearn(
    config: Config, network: Network, weights: Weights, task: Episodes, every_step: bool = False
) -> tf.Tensor:
    """One task's query losses: after the last training step, or [steps] after every step.

    Args:
        weights: θ.
        task: inputa, labela, inputb, labelb of one task, without a task axis.
        every_step: go on to max(num_updates, test_num_updates) steps, as the official graph does.
    """
    forward = forward_conv if network.kind == "conv" else forward_fc
    adapted = [name for name in weights if not name.startswith("model/")]
    fast, losses = dict(weights), []
    for step in range(1, (config.evaluation_updates if every_step else config.num_updates) + 1):
        theta = {name: fast[name] for name in adapted}
        with tf.GradientTape() as tape:
            tape.watch(theta)
            support = loss_func(config, forward(network, fast, task.inputa), task.labela)
        gradients = tape.gradient(support, theta)
        if config.stop_grad:
            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}
        fast |= {name: theta[name] - config.update_lr * gradients[name] for name in adapted}
        if step == config.num_updates:
            losses.append(loss_func(config, forward(network, fast, task.inputb), task.labelb))
        elif every_step:
            frozen = {name: tf.stop_gradient(weight) for name, weight in fast.items()}
            losses.append(loss_func(config, forward(network, frozen, task.inputb), task.labelb))
    return tf.stack(losses) if every_step else losses[-1]


def meta_gradient(
    config: Config, network: Network, weights: Weights, episodes: Episodes, every_step: bool = False
) -> tuple[tf.Tensor, Weights]:
    """The mean over tasks of the query losses, and the gradient of the last training step's by θ.

    Args:
        episodes: a batch of tasks, with a task axis.
        every_step: return the losses after every step, [steps], instead of the one that is trained on.
    """
    tasks = episodes.inputa.shape[0]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        losses = tf.map_fn(
            lambda task: task_metalearn(config, network, weights, Episodes(*task), every_step),
            tuple(episodes),
            fn_output_signature=weights["b1"].dtype,
            parallel_iterations=tasks,
        )
        losses = tf.reduce_sum(losses, 0) / tasks
        meta_loss = losses[config.num_updates - 1] if every_step else losses
    return losses, tape.gradient(meta_loss, weights, unconnected_gradients="zero")


def metatrain_update(
    config: Config, network: Network, weights: Weights, adam: AdamState, episodes: Episodes, every_step: bool = False
) -> tuple[Weights, AdamState, tf.Tensor]:
    """One Adam step on the meta-loss, after clipping where the official code clips.

    Returns:
        The new weights and Adam state, and the losses of `meta_gradient` under the old weights.
    """
    losses, gradients = meta_gradient(config, network, weights, episodes, every_step)
    if config.datasource == "miniimagenet":
        gradients = {
            name: tf.clip_by_value(gradient, -GRADIENT_LIMIT, GRADIENT_LIMIT) for name, gradient in gradients.items()
        }
    return *adam_update(weights, gradients, adam, config.meta_lr), losses
