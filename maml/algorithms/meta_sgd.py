"""Meta-SGD: MAML whose inner rate is a weight of its own for every entry of θ, learned by the same Adam.

Li, Zhou, Chen & Li, *Meta-SGD: Learning to Learn Quickly for Few-Shot Learning*, 2017. The rates begin in
U(0.005, 0.1), and their sign is free.
"""

from maml.config import Config
from maml.maml import MAML
from maml.models.protocol import Model


class MetaSGD(MAML):
    """MAML with learned rates: of every weight, or, with `learn_rates="step"`, of every tensor and step."""

    def __init__(self, config: Config, model: Model | None = None):
        """Builds the learner; a config of another algorithm that learns no rates gets those of Meta-SGD."""
        if config.algorithm != "metasgd":
            kind = "weight" if config.learn_rates == "none" else config.learn_rates
            config = config.replace(algorithm="metasgd", learn_rates=kind)
        super().__init__(config, model)
