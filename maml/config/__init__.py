"""The setting of a run: flags, what follows from them, their checks and names."""

from maml.config.config import ALGORITHMS, METRIC, NORMS, Config, names_of, users

__all__ = ["ALGORITHMS", "METRIC", "NORMS", "Config", "names_of", "users"]
