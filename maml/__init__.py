"""Model-agnostic meta-learning in TensorFlow 2, faithful to the official code.

`train` meta-trains your own model, and `load` loads a trained run, to adapt and predict with. Names are imported,
and TensorFlow with them, when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maml.errors import UserError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maml.algorithms.anil import ANIL
    from maml.algorithms.matching import MatchingNetworks
    from maml.algorithms.meta_sgd import MetaSGD
    from maml.algorithms.plus_plus import MAMLPlusPlus
    from maml.algorithms.protocol import Algorithm
    from maml.algorithms.protonet import PrototypicalNetworks
    from maml.algorithms.reptile import Reptile
    from maml.comparison import compare
    from maml.config import Config
    from maml.data_generator import DataGenerator, Episodes
    from maml.devices.start import strategy
    from maml.learner import Learner, load
    from maml.maml import MAML
    from maml.models.protocol import Model
    from maml.own.learner import OwnLearner
    from maml.own.tasks import folder_tasks
    from maml.own.train import train

__all__ = [
    "ANIL",
    "MAML",
    "Algorithm",
    "Config",
    "DataGenerator",
    "Episodes",
    "Learner",
    "MAMLPlusPlus",
    "MatchingNetworks",
    "MetaSGD",
    "Model",
    "OwnLearner",
    "PrototypicalNetworks",
    "Reptile",
    "UserError",
    "compare",
    "folder_tasks",
    "load",
    "strategy",
    "train",
]

WHERE = {
    "ANIL": "maml.algorithms.anil",
    "MAML": "maml.maml",
    "Algorithm": "maml.algorithms.protocol",
    "Config": "maml.config",
    "compare": "maml.comparison",
    "DataGenerator": "maml.data_generator",
    "Episodes": "maml.data_generator",
    "Learner": "maml.learner",
    "MatchingNetworks": "maml.algorithms.matching",
    "MetaSGD": "maml.algorithms.meta_sgd",
    "MAMLPlusPlus": "maml.algorithms.plus_plus",
    "Model": "maml.models.protocol",
    "PrototypicalNetworks": "maml.algorithms.protonet",
    "Reptile": "maml.algorithms.reptile",
    "OwnLearner": "maml.own.learner",
    "folder_tasks": "maml.own.tasks",
    "load": "maml.learner",
    "strategy": "maml.devices.start",
    "train": "maml.own.train",
}


def __getattr__(name: str) -> Any:
    """A public name, from where it is defined."""
    if name in WHERE:
        return getattr(importlib.import_module(WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
