"""The algorithms by name."""

from collections.abc import Callable

from maml.algorithms.matching import MatchingNetworks
from maml.algorithms.protocol import Algorithm
from maml.algorithms.protonet import PrototypicalNetworks
from maml.algorithms.reptile import Reptile
from maml.config import Config
from maml.errors import UserError
from maml.maml import MAML

BUILDERS: dict[str, Callable[[Config], Algorithm]] = {
    "maml": MAML,
    "matching": MatchingNetworks,
    "protonet": PrototypicalNetworks,
    "reptile": Reptile,
}


def build(config: Config) -> Algorithm:
    """The learner that `--algorithm` names."""
    if config.algorithm not in BUILDERS:
        raise UserError(f"--algorithm={config.algorithm}: not built yet")
    return BUILDERS[config.algorithm](config)
