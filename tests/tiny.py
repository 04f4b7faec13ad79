"""Models and episodes small enough to be differentiated many times."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.data_generator import Episodes
from maml.maml import MAML, Outcome
from maml.models.official import Network, Weights

# kind, max_pool, flat_head: every network the flags can ask for.
NETWORKS = {
    "sinusoid": ("fc", False, False),
    "fc": ("fc", False, False),
    "strided, mean head": ("conv", False, False),
    "strided, flat head": ("conv", False, True),
    "pooled, mean head": ("conv", True, False),
    "pooled, flat head": ("conv", True, True),
}
NORMS = ("batch_norm", "layer_norm", "None")


@contextlib.contextmanager
def untraced(block: int = 2) -> Iterator[None]:
    """Functions run eagerly, an evaluation on `block` tasks at once: 20, or 4, cost nothing in a graph only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "evaluation_block", block)
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)


class Interpreted(Network):
    """An official network that XLA does not compile: compilation takes longer than a short training."""

    compiled = False


def tiny_model(network: str, norm: str, dtype: str = "float64", **settings) -> MAML:
    """The real learner on a small network: two or three hidden layers, or four blocks of 3 filters.

    A strided network sees maps of 17, 9, 5, 3 and 2 pixels, a pooled one of 33, 16 (a row and a
    column are dropped), 8, 4 and 2. The sinusoid's matrix is thick enough to be multiplied as one in the first step.
    """
    kind, max_pool, flat_head = NETWORKS[network]
    if network == "sinusoid":
        oracle = settings.get("baseline") == "oracle"
        config = Config(norm=norm, dtype=dtype, **{"update_lr": 0.05, "update_batch_size": 4} | settings)
        return MAML(config, Network("fc", 3 if oracle else 1, 1, (22, 21), norm, dtype=dtype))
    defaults = {"update_batch_size": 2 if kind == "fc" else 1, "num_classes": 3, "update_lr": 0.1}
    config = Config(datasource="omniglot", norm=norm, max_pool=max_pool, dtype=dtype, **defaults | settings)
    if kind == "fc":
        return MAML(config, Network("fc", 6, config.num_classes, (8, 7, 6), norm, dtype=dtype))
    size = 33 if max_pool else 17
    shape = Network("conv", size * size * 2, config.num_classes, (3,), norm, size, 2, max_pool, flat_head, dtype=dtype)
    return MAML(config, shape)


def tiny_weights(model: MAML, seed: int) -> Weights:
    """Weights with nothing left at zero, about as large as trained ones."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, weight in model.model.init(seed).items():
        shape = weight.shape
        spread = 0.3 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[:-1]))
        centre = 1.0 if name.endswith("gamma") else 0.0
        weights[name] = tf.constant(centre + spread * rng.normal(size=shape), model.config.dtype)
    return weights


def tiny_episodes(model: MAML, seed: int, tasks: int = 2, queries: int | None = None) -> Episodes:
    """Random inputs in [-1, 1]; labels in random order, or random numbers for regression."""
    rng = np.random.default_rng(seed)
    config = model.config
    classes = config.num_classes if config.classification else 1
    sizes = (config.update_batch_size * classes, (queries or config.update_batch_size) * classes)
    arrays = []
    for size in sizes:
        arrays.append(rng.uniform(-1, 1, [tasks, size, *model.model.input_shape]))
        if config.classification:
            order = rng.permuted(np.tile(np.arange(size) % classes, (tasks, 1)), axis=1)
            arrays.append(np.eye(classes)[order])
        else:
            arrays.append(rng.normal(size=[tasks, size, 1]))
    return Episodes(*(tf.constant(array, config.dtype) for array in arrays))


def adapt_all(model: MAML, weights: Weights, episodes: Episodes, num_updates: int, every_step: bool = False) -> Outcome:
    """What adaptation does to every task of a batch, with a leading task axis; weights that are not adapted too."""
    outcomes = [model.task_metalearn(weights, task, num_updates, every_step) for task in episodes.tasks()]
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *outcomes)


def meta_gradient(model: MAML, weights: Weights, episodes: Episodes) -> tuple[tf.Tensor, Weights]:
    """Meta-loss and meta-gradient, also of an oracle, which is only ever pre-trained."""
    return MAML(model.config.replace(baseline="None", pretrain_iterations=0), model.model).gradient(
        weights, episodes, 0
    )


def flatten(tensors: Weights, names: list[str]) -> np.ndarray:
    """One vector of all weights, in the order of `names`."""
    return np.concatenate([np.reshape(tensors[name], [-1]) for name in names])


def relative_error(actual: Weights, expected: Weights, names=None) -> float:
    """‖actual − expected‖ / ‖expected‖ over all weights together."""
    names = list(names or expected)
    a, b = (flatten(tensors, names).astype(np.float64) for tensors in (actual, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
