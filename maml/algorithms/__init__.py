"""The algorithms by name: one entry makes an algorithm known to flags, training, tests and prediction.

This file loads no TensorFlow; the flags are read from it.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maml.algorithms.protocol import Algorithm
    from maml.config import Config


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the program has to know of an algorithm before it is built.

    where: module:class.
    flags: those that only some algorithms use, this one among them; all others are for all of them.
    defaults: what its authors used, by data source, where it is not the flag's default.
    training_classes: classes of a training task, by data source and shots; None: as in a test.
    training_queries: query examples a class of a training task; None: as in a test.
    inner_steps: whether it adapts in gradient steps; the others only learn an embedding.
    regresses: whether it can do without classes.
    """

    where: str
    flags: frozenset[str]
    defaults: Callable[[str], dict[str, Any]] = lambda datasource: {}
    training_classes: Callable[[str, int], int | None] = lambda datasource, shots: None
    training_queries: Callable[[str], int | None] = lambda datasource: None
    inner_steps: bool = True
    regresses: bool = False


def _protonet_ways(datasource: str, shots: int) -> int:
    return 60 if datasource == "omniglot" else 30 if shots == 1 else 20


def _five_queries(datasource: str) -> int | None:
    return None if datasource == "miniimagenet" else 5


def _always(**values: Any) -> Callable[[str], dict[str, Any]]:
    return lambda datasource: values


def _plus_plus(datasource: str) -> dict[str, Any]:
    """As in the configurations of AntreasAntoniou/HowToTrainYourMAMLPytorch at 1d872d3, "to reflect paper"."""
    tricks = {"learn_rates": "step", "num_updates": 5, "total_epochs": 250, "metatrain_iterations": 125_000}
    tricks |= {"val_interval": 500, "val_tasks": 600, "keep_best": 3}
    if datasource in ("sinusoid", "own"):
        return tricks | {"multi_step_loss_num_epochs": 20}
    images = tricks | {"conventions": "maml++", "per_step_bn": True, "max_pool": True}
    if datasource in ("miniimagenet", "folder"):
        sizes = {"num_filters": 32, "meta_batch_size": 4, "query_size": 15, "update_lr": 0.01}
        return images | sizes | {"multi_step_loss_num_epochs": 50}
    sizes = {"num_filters": 64, "meta_batch_size": 16, "query_size": 1, "update_lr": 0.1}
    return images | sizes | {"multi_step_loss_num_epochs": 20} | ({} if datasource else {"datasource": "omniglot"})


_POOLED_64 = {"max_pool": True, "num_filters": 64}
_METRIC_FLAGS = {"accumulate", "meta_lr", "train_num_classes", "distance", "attention_scale", "halving_interval"}
_MINIBATCHES = {"train_shots", "inner_iters", "inner_batch", "inner_optimizer", "eval_inner_iters", "eval_inner_batch"}

_GRADIENT_FLAGS = {"meta_lr", "update_lr", "train_update_lr", "num_updates", "test_num_updates", "stop_grad", "conv"}
_GRADIENT_FLAGS |= {"baseline", "pretrain_iterations", "check_gradients", "recompute", "adapt", "learn_rates"}
_GRADIENT_FLAGS |= {"accumulate", "per_step_bn", "multi_step_loss_num_epochs", "first_order_to_second_order_epoch"}
_GRADIENT_FLAGS |= {
    "keep_best",
    "test_head",
    "conventions",
    "total_epochs",
    "min_learning_rate",
    "total_iter_per_epoch",
}

ENTRIES = {
    "maml": Entry("maml.maml:MAML", frozenset(_GRADIENT_FLAGS), regresses=True),
    "anil": Entry("maml.algorithms.anil:ANIL", frozenset(_GRADIENT_FLAGS), _always(adapt="head"), regresses=True),
    "metasgd": Entry(
        "maml.algorithms.meta_sgd:MetaSGD",
        frozenset(_GRADIENT_FLAGS),
        _always(learn_rates="weight", num_updates=1),
        regresses=True,
    ),
    "maml++": Entry("maml.algorithms.plus_plus:MAMLPlusPlus", frozenset(_GRADIENT_FLAGS), _plus_plus, regresses=True),
    "reptile": Entry(
        "maml.algorithms.reptile:Reptile",
        frozenset({"update_lr", "train_update_lr", "conv", "meta_step", "meta_step_final"} | _MINIBATCHES),
        _always(datasource="omniglot", meta_batch_size=5, update_lr=0.001),
    ),
    "protonet": Entry(
        "maml.algorithms.protonet:PrototypicalNetworks",
        frozenset(_METRIC_FLAGS),
        _always(datasource="omniglot", meta_batch_size=1, halving_interval=2000, **_POOLED_64),
        training_classes=_protonet_ways,
        training_queries=_five_queries,
        inner_steps=False,
    ),
    "matching": Entry(
        "maml.algorithms.matching:MatchingNetworks",
        frozenset(_METRIC_FLAGS | {"fce", "unrolling_steps"}),
        _always(datasource="omniglot", meta_batch_size=16, distance="cosine", **_POOLED_64),
        training_queries=_five_queries,
        inner_steps=False,
    ),
}
NAMES = tuple(ENTRIES)


def users(flag: str) -> tuple[str, ...]:
    """The algorithms that use a flag: those that list it, or all where none does."""
    return tuple(name for name, entry in ENTRIES.items() if flag in entry.flags) or NAMES


def build(config: "Config") -> "Algorithm":
    """The learner that `--algorithm` names."""
    cosine = config.test_head == "cosine" and not config.train
    module, name = ("maml.algorithms.nil:NIL" if cosine else ENTRIES[config.algorithm].where).split(":")
    return getattr(importlib.import_module(module), name)(config)
