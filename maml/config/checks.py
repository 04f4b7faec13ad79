"""What is wrong with a setting, in one line."""

import dataclasses
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from maml import algorithms
from maml.config.flags import SMALLEST_POOLED, UNSET, Flags
from maml.errors import UserError

if TYPE_CHECKING:
    from maml.config.config import Config


# Of the official networks and data sources; a model and tasks of one's own decide all this.
NOT_OWN = (
    *("baseline", "bfloat16", "channels", "conv", "conventions", "crop", "data_dir", "flip", "image_size", "max_pool"),
    *("normalize", "num_classes", "num_filters", "omniglot_resize", "query_size", "rotate_classes"),
    *("train_num_classes", "train_update_batch_size", "update_batch_size"),
)


def check(config: "Config", given: Collection[str] = ()) -> None:
    """Raises UserError with one line if a flag is out of range, contradicts another, or has no use.

    Args:
        given: names of flags that have a use, or should not have been given, even at their default.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        _check_value(field, value)
        if not config.uses(field.name) and (field.name in given or value != field.default):
            raise UserError(
                f"--{field.name} has no meaning with --algorithm={config.algorithm}; it is for "
                f"{', '.join(algorithms.users(field.name))}: leave it out, or choose that --algorithm"
            )
    if config.meta_batch_size % config.accumulate:
        small = [n for n in range(1, math.isqrt(config.meta_batch_size) + 1) if not config.meta_batch_size % n]
        near = min(
            [*small, *(config.meta_batch_size // n for n in small)], key=lambda n: (abs(n - config.accumulate), n)
        )
        raise UserError(
            f"--accumulate={config.accumulate}: --meta_batch_size={config.meta_batch_size} does not divide into that "
            f"many equal parts; the nearest number that does is {near}"
        )
    _check_task(config, given)
    _check_network(config)
    _check_use(config)


def _check_value(field: dataclasses.Field, value: Any) -> None:
    choices, least, most = (field.metadata[name] for name in ("choices", "least", "most"))
    if choices and value not in choices:
        raise UserError(f"--{field.name}={value}: must be one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{field.name}={value}: must be a finite number")
    if isinstance(value, int | float) and value < least:
        raise UserError(f"--{field.name}={value}: must be at least {least}")
    if isinstance(value, int | float) and value > most:
        raise UserError(f"--{field.name}={value}: must be at most {most}")
    if field.metadata["no_zero"] and value == 0:
        raise UserError(f"--{field.name}=0: must be at least 1, or -1 for the default")


def _check_task(config: "Config", given: Collection[str]) -> None:
    if (config.loss == "official") == (config.datasource == "own"):
        raise UserError("--datasource=own and --loss are for maml.train in Python, with a model and tasks of your own")
    if config.datasource == "own":
        _check_own(config, given)
        return
    if not (config.classification or algorithms.ENTRIES[config.algorithm].regresses):
        raise UserError(f"--algorithm={config.algorithm} is for images; choose a --datasource other than sinusoid")
    if config.datasource == "sinusoid":
        if config.conventions != "maml":
            raise UserError(
                f"--conventions={config.conventions} is for images; choose a --datasource other than sinusoid"
            )
        if config.max_pool or config.num_filters != Flags.num_filters:
            raise UserError("--max_pool and --num_filters are for images; the sinusoid network has none")
    elif config.baseline != "None":
        raise UserError(f"--baseline={config.baseline} is for --datasource=sinusoid only")
    elif config.omniglot_resize != "nearest" and config.datasource != "omniglot":
        raise UserError("--omniglot_resize is for --datasource=omniglot only")
    elif config.num_classes < 2:
        raise UserError("--num_classes=1: classification needs at least 2 classes")
    if config.datasource != "folder" and (config.image_size, config.channels) != (UNSET, UNSET):
        raise UserError("--image_size and --channels are for --datasource=folder only")


def _check_own(config: "Config", given: Collection[str]) -> None:
    """Refuses what is of the official networks and data sources beside a model and tasks of one's own."""
    if not config.uses("learn_rates"):
        family = ", ".join(algorithms.users("learn_rates"))
        raise UserError(f"--algorithm={config.algorithm} is for the official networks; maml.train has {family}")
    if config.norm != "None":
        raise UserError(f"--norm={config.norm} is for the official networks; your model has its own normalizations")
    for name in NOT_OWN:
        if name in given:
            raise UserError(
                f"--{name}={getattr(config, name)} is for the official networks and data sources; with maml.train it "
                "is your model and your tasks that decide"
            )


def _check_network(config: "Config") -> None:
    changed = [name for name in ("flip", "crop", "rotate_classes", "normalize") if getattr(config, name)]
    if changed and not config.classification:
        raise UserError(f"--{changed[0]} is for images; choose a --datasource other than sinusoid")
    if config.normalize != "auto":
        _ = config.normalization  # refuses what it cannot read
    if config.per_step_bn and (config.norm != "batch_norm" or config.datasource == "own"):
        own = "a model of your own" if config.datasource == "own" else f"--norm={config.norm}"
        raise UserError(f"--per_step_bn is for the official networks with --norm=batch_norm, and this run has {own}")
    if config.bfloat16 and not (config.convolutional and config.dtype == "float32"):
        raise UserError("--bfloat16 is for convolutional networks in float32 only")
    if config.channels not in (UNSET, 1, 3):
        raise UserError(f"--channels={config.channels}: must be 1 (gray) or 3 (color)")
    smallest = SMALLEST_POOLED if config.convolutional and config.max_pool else 1
    if config.classification and config.datasource != "own" and not smallest <= config.image_shape[0] <= 1024:
        raise UserError(f"--image_size={config.image_size}: must be between {smallest} and 1024 for this network")


def _check_use(config: "Config") -> None:
    """Refuses flags of a call that do not fit the run or each other."""
    training = config.train and not config.predict
    if config.histograms and not config.log:
        raise UserError("--histograms needs TensorBoard's summaries: leave --log=False out")
    if config.bn_mode != "transductive" and training:
        raise UserError(f"--bn_mode={config.bn_mode} is for --train=False and --predict; training is transductive")
    if config.bn_mode != "transductive" and config.norm != "batch_norm":
        raise UserError(f"--bn_mode={config.bn_mode} is for batch-norm, and this run has --norm={config.norm}")
    if config.test_checkpoint == "ensemble" and not config.uses("keep_best"):
        raise UserError(f"--test_checkpoint=ensemble has no meaning with --algorithm={config.algorithm}; take best")
    if config.test_head == "cosine":
        if training:
            raise UserError("--test_head=cosine is for --train=False and --predict; training adapts the head")
        if not config.classification or config.datasource == "own":
            raise UserError("--test_head=cosine is for the official networks on images")
        if config.test_checkpoint == "ensemble":
            raise UserError("--test_head=cosine tests one checkpoint; leave --test_checkpoint=ensemble out")
    if config.export_dir and training:
        raise UserError(f"--export_dir={config.export_dir} is for --train=False and --predict; train first")
    for name in ("support", "query", "predict_csv"):
        if getattr(config, name) and not config.predict:
            raise UserError(f"--{name}={getattr(config, name)} is for --predict; add that flag")
    if config.total_iterations == 0 and config.train:
        raise UserError("--metatrain_iterations=0 and --pretrain_iterations=0 leave nothing to train")
