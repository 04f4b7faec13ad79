"""The algorithms by name."""

from collections.abc import Callable

from maml.config import Config
from maml.errors import UserError
from maml.interface import Algorithm
from maml.maml import MAML
from maml.matching import MatchingNetworks
from maml.protonet import PrototypicalNetworks
from maml.reptile import Reptile

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
