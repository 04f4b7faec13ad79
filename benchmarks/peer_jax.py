"""A meta-update in JAX: `jax.grad` of one task under `jax.vmap` or `jax.lax.map`, the whole update under `jax.jit`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maml.algorithms.adam import BETA_1, BETA_2, EPSILON
from maml.algorithms.adapting import GRADIENT_LIMIT
from maml.config import Config
from maml.models.official import BATCH_NORM_EPSILON, CONV_BLOCKS, Network

NHWC = ("NHWC", "HWIO", "NHWC")


def normalize(inp, weights, layer: int, norm: str):
    """Batch-norm of one task's [examples, …, channels] by its own statistics, with a shift and no scale."""
    if norm == "None":
        return inp
    axes = tuple(range(inp.ndim - 1))
    mean, variance = inp.mean(axes), inp.var(axes)
    return (inp - mean) * lax.rsqrt(variance + BATCH_NORM_EPSILON) + weights[f"model/{layer}/beta"]


def forward(network: Network, weights, inp):
    """Outputs [examples, dim_output] of one task's [examples, dim_input]."""
    if network.kind == "fc":
        layers = len(network.dim_hidden) + 1
        for i in range(1, layers):
            inp = jax.nn.relu(normalize(inp @ weights[f"w{i}"] + weights[f"b{i}"], weights, i - 1, network.norm))
        return inp @ weights[f"w{layers}"] + weights[f"b{layers}"]
    size, stride = network.image_size, 1 if network.max_pool else 2
    hidden = inp.reshape(-1, size, size, network.channels)
    for i in range(1, CONV_BLOCKS + 1):
        hidden = lax.conv_general_dilated(hidden, weights[f"conv{i}"], (stride, stride), "SAME", dimension_numbers=NHWC)
        hidden = jax.nn.relu(normalize(hidden + weights[f"b{i}"], weights, i - 1, network.norm))
        if network.max_pool:
            hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    hidden = hidden.reshape(hidden.shape[0], -1) if network.flat_head else hidden.mean((1, 2))
    return hidden @ weights["w5"] + weights["b5"]


def task_loss(config: Config, network: Network, weights, inputa, labela, inputb, labelb):
    """One task's query loss after the inner steps."""

    def loss(adapted, inp, labels):
        outputs = forward(network, weights | adapted, inp)
        if config.classification:
            return -(labels * jax.nn.log_softmax(outputs)).sum() / config.update_batch_size
        return jnp.square(outputs - labels).mean()

    fast = {name: weight for name, weight in weights.items() if name in network.adapted}
    for _ in range(config.num_updates):
        gradients = jax.grad(loss)(fast, inputa, labela)
        fast = jax.tree.map(lambda weight, gradient: weight - config.update_lr * gradient, fast, gradients)
    return loss(fast, inputb, labelb)


def meta_gradient(config: Config, network: Network, weights, episodes, vmap: bool):
    """The meta-loss and its gradient by θ; the tasks side by side with `vmap`, or one after the other."""

    def meta_loss(weights):
        def of_task(task):
            return task_loss(config, network, weights, *task)

        return (jax.vmap(of_task)(episodes) if vmap else lax.map(of_task, episodes)).mean()

    return jax.value_and_grad(meta_loss)(weights)


def metatrain_update(config: Config, network: Network, state, episodes, vmap: bool):
    """One Adam step on the meta-loss; `state` is (θ, m, v, steps so far)."""
    weights, m, v, step = state
    loss, gradients = meta_gradient(config, network, weights, episodes, vmap)
    if config.clips_gradient:
        gradients = jax.tree.map(lambda g: g.clip(-GRADIENT_LIMIT, GRADIENT_LIMIT), gradients)
    step += 1
    m = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g**2, v, gradients)
    rate = config.meta_lr * jnp.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, m, v)
    return (weights, m, v, step), loss


def make_run(config: Config, network: Network, weights: dict[str, np.ndarray], episodes, vmap: bool):
    """A function that computes that many meta-updates on the same episodes and returns the last one's loss."""
    weights, episodes = jax.tree.map(jnp.asarray, (weights, tuple(episodes)))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    fresh = (weights, zeros, zeros, 0)

    @jax.jit
    def update(state, episodes):
        return metatrain_update(config, network, state, episodes, vmap)

    @jax.jit
    def loop(state, episodes, count):
        """Many updates in one call, as ours makes them where they are small."""
        return lax.fori_loop(0, count, lambda _, carry: update(carry[0], episodes), (state, jnp.zeros([])))

    def run(count: int) -> float:
        if network.kind == "fc":
            return float(loop(fresh, episodes, count)[1])
        state = fresh
        for _ in range(count):
            state, loss = update(state, episodes)
        jax.block_until_ready(state)
        return float(loss)

    return run
