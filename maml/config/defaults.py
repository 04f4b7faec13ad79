"""Defaults that depend on the data source and the algorithm; they stand in for flags that were not given."""

from typing import Any

from maml import algorithms

# The paper's values for miniImageNet (its section A.1); they stand in for flags that were
# not given, because the official defaults were chosen for the sinusoid.
MINIIMAGENET_DEFAULTS = {
    "max_pool": True,
    "num_filters": 32,
    "update_lr": 0.01,
    "meta_batch_size": 4,
}

# One's own images are learned like miniImageNet's, with as many inner steps as its command gives.
FOLDER_DEFAULTS = {"num_updates": 5}


def defaults_of(algorithm: str, datasource: str) -> dict[str, Any]:
    """The defaults of an algorithm on a data source, where they are not those of the flags."""
    defaults: dict[str, Any] = {}
    if datasource in ("miniimagenet", "folder"):
        defaults |= MINIIMAGENET_DEFAULTS
    if datasource == "folder":
        defaults |= FOLDER_DEFAULTS
    used = {name: value for name, value in defaults.items() if algorithm in algorithms.users(name)}
    return used | (algorithms.ENTRIES[algorithm].defaults if algorithm in algorithms.ENTRIES else {})
