"""MAML++: MAML with the tricks that make it train stably.

Antoniou, Edwards & Storkey, *How to train your MAML*, ICLR 2019. Each trick is a flag of the whole family, and the
core is MAML's; `docs/algorithms.md` says which they are.
"""

from maml.algorithms import ENTRIES
from maml.config import Config
from maml.maml import MAML
from maml.models.protocol import Model

TRICKS = ("learn_rates", "multi_step_loss_num_epochs", "total_epochs", "per_step_bn", "conventions", "keep_best")


class MAMLPlusPlus(MAML):
    """MAML with the tricks that its config names."""

    def __init__(self, config: Config, model: Model | None = None):
        """Builds the learner; a config of another algorithm gets the published tricks, and keeps its sizes and rates.

        Args:
            config: of `--algorithm=maml++`, or any other.
            model: None: the network of the config.
        """
        if config.algorithm != "maml++":
            published = ENTRIES["maml++"].defaults(config.datasource)
            tricks = {name: published[name] for name in TRICKS if name in published}
            config = config.replace(algorithm="maml++", **tricks)
        super().__init__(config, model)
