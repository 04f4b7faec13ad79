"""The algorithms by name."""

import importlib
from typing import TYPE_CHECKING

from maml.errors import UserError

if TYPE_CHECKING:
    from maml.algorithms.protocol import Algorithm
    from maml.config import Config

WHERE = {
    "maml": "maml.maml:MAML",
    "matching": "maml.algorithms.matching:MatchingNetworks",
    "protonet": "maml.algorithms.protonet:PrototypicalNetworks",
    "reptile": "maml.algorithms.reptile:Reptile",
}


def build(config: "Config") -> "Algorithm":
    """The learner that `--algorithm` names."""
    if config.algorithm not in WHERE:
        raise UserError(f"--algorithm={config.algorithm}: not built yet")
    module, name = WHERE[config.algorithm].split(":")
    return getattr(importlib.import_module(module), name)(config)
