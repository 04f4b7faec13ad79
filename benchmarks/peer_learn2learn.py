"""A meta-update by learn2learn: its `MAML` around a PyTorch module, one task after the other, as its examples do."""

import learn2learn
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peer_torch import forward, to_torch
from maml.algorithms.adapting import GRADIENT_LIMIT
from maml.config import Config
from maml.models.official import Network


class Adapted(torch.nn.Module):
    """The network's adapted weights as a module; the others it only uses, so that the inner loop leaves them alone."""

    def __init__(self, network: Network, weights: dict[str, torch.Tensor]):
        """`weights` by official names: leaves that require a gradient."""
        super().__init__()
        self.network = network
        self.others = {name: weight for name, weight in weights.items() if name not in network.adapted}
        for name in sorted(network.adapted):
            self.register_parameter(name, torch.nn.Parameter(weights[name].detach().clone()))

    def forward(self, inp: torch.Tensor) -> torch.Tensor:
        """Outputs [examples, dim_output] of [examples, dim_input]; images are NCHW."""
        return forward(self.network, self.others | dict(self.named_parameters()), inp)

    def learned(self) -> dict[str, torch.Tensor]:
        """Every weight by its name."""
        return dict(self.named_parameters()) | self.others


def meta_gradient(config: Config, module: Adapted, episodes) -> torch.Tensor:
    """The meta-loss; its gradient is added to the weights' `grad`."""

    def loss_of(outputs, labels):
        if config.classification:
            return F.cross_entropy(outputs, labels, reduction="sum") / config.update_batch_size
        return F.mse_loss(outputs, labels)

    learner, losses = learn2learn.algorithms.MAML(module, lr=config.update_lr), []
    for inputa, labela, inputb, labelb in zip(*episodes, strict=True):
        clone = learner.clone()
        for _ in range(config.num_updates):
            clone.adapt(loss_of(clone(inputa), labela))
        loss = loss_of(clone(inputb), labelb) / len(episodes[0])
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def make_run(config: Config, network: Network, weights: dict[str, np.ndarray], episodes, vmap: bool):
    """A function that computes that many meta-updates on the same episodes and returns the last one's loss."""

    def run(count: int) -> float:
        leaves, tasks = to_torch(config, network, weights, episodes)
        module = Adapted(network, leaves)
        learned = module.learned().values()
        adam = torch.optim.Adam(learned, lr=config.meta_lr, fused=True)
        for _ in range(count):
            adam.zero_grad()
            loss = meta_gradient(config, module, tasks)
            if config.clips_gradient:
                torch.nn.utils.clip_grad_value_(learned, GRADIENT_LIMIT)
            adam.step()
        return float(loss)

    return run
