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


# How the official MAML++ code normalizes images: Omniglot's paper is 1 there and ink 0, which is the opposite here, and
# miniImageNet is normalized by ImageNet's mean and standard deviation.
PLUS_PLUS_NORMALIZATION = {
    "omniglot": ((1.0,), (-1.0,)),
    "miniimagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def defaults_of(algorithm: str, datasource: str) -> dict[str, Any]:
    """The defaults of an algorithm on a data source, where they are not those of the flags."""
    defaults: dict[str, Any] = {}
    if datasource in ("miniimagenet", "folder"):
        defaults |= MINIIMAGENET_DEFAULTS
    if datasource == "folder":
        defaults |= FOLDER_DEFAULTS
    used = {name: value for name, value in defaults.items() if algorithm in algorithms.users(name)}
    if algorithm not in algorithms.ENTRIES:
        return used
    return used | algorithms.ENTRIES[algorithm].defaults(datasource)
