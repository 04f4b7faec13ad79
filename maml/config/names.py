"""The name of a run's folder."""

import dataclasses
from typing import TYPE_CHECKING, Any

from maml.config.defaults import defaults_of
from maml.config.flags import UNSET, Flags

if TYPE_CHECKING:
    from maml.config.config import Config

# Flags that the official name of a run's folder holds, or that are refused rather than named.
OFFICIALLY_NAMED = {
    *("algorithm", "datasource", "num_classes", "meta_batch_size", "update_batch_size", "num_updates", "update_lr"),
    *("num_filters", "max_pool", "stop_grad", "baseline", "norm", "pretrain_iterations"),
}


def exp_string(config: "Config") -> str:
    """The name of the run's folder.

    The official name, which starts with the algorithm's if that is not MAML; behind it whatever else makes
    another run and is not at its default: `.seed1`, `.metalr0.01`.
    """
    shots, rate = config.train_update_batch_size, config.train_update_lr
    changed = [field for field in dataclasses.fields(config) if getattr(config, field.name) != field.default]
    labels = [(field.metadata["label"], getattr(config, field.name)) for field in changed]
    return "".join(
        [
            "" if config.algorithm == Flags.algorithm else f"{config.algorithm}.",
            "own" if config.datasource == "own" else f"cls_{config.num_classes}",
            f".mbs_{config.meta_batch_size}",
            "" if config.datasource == "own" else f".ubs_{config.update_batch_size if shots == UNSET else shots}",
            f".numstep{config.num_updates}" if config.uses("num_updates") else "",
            f".updatelr{config.update_lr if rate == UNSET else rate}" if config.uses("update_lr") else "",
            *(f".{label}{'' if value is True else value}" for label, value in labels if label),
            f"hidden{config.num_filters}" if config.num_filters != 64 else "",
            "maxpool" if config.max_pool else "",
            "stopgrad" if config.stop_grad else "",
            config.baseline if config.baseline != "None" else "",
            {"batch_norm": "batchnorm", "layer_norm": "layernorm", "None": "nonorm"}[config.norm],
            *(f".{name.replace('_', '')}{str(value).replace('/', '_')}" for name, value in _unnamed(config).items()),
        ]
    )


def _unnamed(config: "Config") -> dict[str, Any]:
    """Flags of the identity that the official name does not hold, where they are not at their default."""
    default = defaults_of(config.algorithm, config.datasource)
    labeled = {name for name in config.identity if Flags.__dataclass_fields__[name].metadata["label"]}
    return {
        name: value
        for name, value in config.identity.items()
        if name not in labeled.union(OFFICIALLY_NAMED) and value != default.get(name, getattr(Flags, name))
    }
