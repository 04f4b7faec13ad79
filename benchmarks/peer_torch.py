"""A meta-update in PyTorch: one task after the other with `torch.autograd.grad`, or all under `torch.func.vmap`.

`torch.compile` is not used: it cannot differentiate twice.
"""

import numpy as np
import torch
import torch.nn.functional as F

from maml.algorithms.adapting import GRADIENT_LIMIT
from maml.config import Config
from maml.models.official import BATCH_NORM_EPSILON, CONV_BLOCKS, Network


def normalize(inp, weights, layer: int, norm: str):
    """Batch-norm of one task's [examples, channels, …] by its own statistics, with a shift and no scale."""
    if norm == "None":
        return inp
    shift = weights[f"model/{layer}/beta"]
    return F.batch_norm(inp, None, None, bias=shift, training=True, eps=BATCH_NORM_EPSILON)


def forward(network: Network, weights, inp):
    """Outputs [examples, dim_output] of one task's [examples, dim_input]; images are NCHW."""
    if network.kind == "fc":
        layers = len(network.dim_hidden) + 1
        for i in range(1, layers):
            inp = F.relu(normalize(inp @ weights[f"w{i}"] + weights[f"b{i}"], weights, i - 1, network.norm))
        return inp @ weights[f"w{layers}"] + weights[f"b{layers}"]
    for i in range(1, CONV_BLOCKS + 1):
        if network.max_pool:
            inp = F.conv2d(inp, weights[f"conv{i}"], weights[f"b{i}"], padding=1)
        else:
            before = inp.shape[-1] % 2  # TensorFlow's SAME pads an even map only after it
            inp = F.conv2d(F.pad(inp, (before, 1, before, 1)), weights[f"conv{i}"], weights[f"b{i}"], stride=2)
        inp = F.relu(normalize(inp, weights, i - 1, network.norm))
        if network.max_pool:
            inp = F.max_pool2d(inp, 2)
    inp = inp.permute(0, 2, 3, 1).flatten(1) if network.flat_head else inp.mean((2, 3))
    return inp @ weights["w5"] + weights["b5"]


def task_loss(config: Config, network: Network, weights, task, functional: bool):
    """One task's query loss after the inner steps; `functional` for `torch.func`, otherwise by autograd's graph."""
    inputa, labela, inputb, labelb = task

    def loss(adapted, inp, labels):
        outputs = forward(network, weights | adapted, inp)
        if config.classification:
            return F.cross_entropy(outputs, labels, reduction="sum") / config.update_batch_size
        return F.mse_loss(outputs, labels)

    fast = {name: weight for name, weight in weights.items() if name in network.adapted}
    for _ in range(config.num_updates):
        if functional:
            gradients = torch.func.grad(loss)(fast, inputa, labela)
        else:
            found = torch.autograd.grad(loss(fast, inputa, labela), list(fast.values()), create_graph=True)
            gradients = dict(zip(fast, found, strict=True))
        fast = {name: weight - config.update_lr * gradients[name] for name, weight in fast.items()}
    return loss(fast, inputb, labelb)


def meta_gradient(config: Config, network: Network, weights, episodes, vmap: bool):
    """The meta-loss; its gradient is added to the weights' `grad`."""
    if vmap:

        def of_task(*task):
            return task_loss(config, network, weights, task, functional=True)

        loss = torch.func.vmap(of_task)(*episodes).mean()
        loss.backward()
        return loss.detach()
    losses = []
    for task in zip(*episodes, strict=True):  # backward after each, so that only one task's graph is kept
        loss = task_loss(config, network, weights, task, functional=False) / len(episodes[0])
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def to_torch(config: Config, network: Network, weights, episodes):
    """Leaves that require a gradient, and episodes, from arrays in TensorFlow's layout."""
    leaves = {
        name: torch.tensor(weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight).contiguous().requires_grad_()
        for name, weight in weights.items()
    }
    inputa, labela, inputb, labelb = (torch.tensor(array) for array in episodes)
    if network.kind == "conv":
        shape = (network.image_size, network.image_size, network.channels)
        inputa, inputb = (inp.unflatten(2, shape).permute(0, 1, 4, 2, 3).contiguous() for inp in (inputa, inputb))
    if config.classification:
        labela, labelb = labela.argmax(-1), labelb.argmax(-1)
    return leaves, (inputa, labela, inputb, labelb)


def make_run(config: Config, network: Network, weights: dict[str, np.ndarray], episodes, vmap: bool):
    """A function that computes that many meta-updates on the same episodes and returns the last one's loss."""

    def run(count: int) -> float:
        leaves, tasks = to_torch(config, network, weights, episodes)
        adam = torch.optim.Adam(leaves.values(), lr=config.meta_lr, fused=True)
        for _ in range(count):
            adam.zero_grad()
            loss = meta_gradient(config, network, leaves, tasks, vmap)
            if config.clips_gradient:
                torch.nn.utils.clip_grad_value_(leaves.values(), GRADIENT_LIMIT)
            adam.step()
        return float(loss)

    return run
