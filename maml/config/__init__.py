"""The setting of a run: the flag table, what follows from it, and what is wrong with it."""

from maml.config.config import Config
from maml.config.flags import names_of

__all__ = ["Config", "names_of"]
