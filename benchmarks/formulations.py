"""The ways to compute a meta-update that are compared, each ready to be timed."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from benchmarks import official_structure
from maml import algorithms
from maml.algorithms.adam import adam_init
from maml.algorithms.protocol import Algorithm
from maml.config import Config
from maml.data_generator import DataGenerator, Episodes
from maml.maml import MAML
from maml.models.official import Network
from maml.models.protocol import Weights
from maml.parallel import set_up_threads
from maml.training.updates import make_update, update

PLAIN, PLAIN_SMALL, WHOLE = "plain", "plain, small kernels", "whole official graph"
OURS, FIRST_ORDER, RECOMPUTED, BFLOAT16 = "ours", "first order", "recomputed", "bfloat16"
DEFAULT = (PLAIN, PLAIN_SMALL, OURS, FIRST_ORDER)
OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {},
    FIRST_ORDER: {"stop_grad": True},
    RECOMPUTED: {"recompute": True},
    BFLOAT16: {"bfloat16": True},
}
EVERY_STEP, QUERY_PASS = "the loss of every step", "a query pass"
FAMILY: dict[str, dict[str, Any]] = {
    "ANIL": {"algorithm": "anil", "adapt": "head"},
    "a rate for each weight (Meta-SGD)": {"learn_rates": "weight"},
    "a rate for each tensor and step": {"learn_rates": "step"},
    EVERY_STEP: {"multi_step_loss_num_epochs": 10},
    "batch-norm of each step": {"per_step_bn": True},
    "the last three, MAML++": {"learn_rates": "step", "multi_step_loss_num_epochs": 10, "per_step_bn": True},
}
JAX_VMAP, JAX_MAP, TORCH_VMAP, TORCH_LOOP = "JAX vmap", "JAX map", "PyTorch vmap", "PyTorch loop"
KERAS, LEARN2LEARN = "Keras", "learn2learn"
PEERS = {  # and the package of each
    KERAS: "keras",
    JAX_VMAP: "jax",
    JAX_MAP: "jax",
    TORCH_VMAP: "torch",
    TORCH_LOOP: "torch",
    LEARN2LEARN: "learn2learn",
}

UPDATES_IN_A_LOOP = 1000  # between two printed lines, as training runs the fully connected networks


class Formulation(NamedTuple):
    """One way to compute meta-updates.

    run: computes that many meta-updates, from fresh weights on; returns the last one's loss.
    updates: how many to compute in a timed call.
    """

    run: Callable[[int], float]
    updates: int


def build(name: str, config: Config, data: DataGenerator) -> Formulation:
    """The formulation of this name; all of them start with the same weights and the same episodes."""
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    if name in (PLAIN, PLAIN_SMALL, WHOLE):
        return _official(config, data, every_step=name == WHOLE)
    if name == KERAS:
        return _keras(config, data)
    if name in PEERS:
        return _peer(name, config, data)
    if name == QUERY_PASS:
        model: Algorithm = QueryPass(config)
    else:
        model = algorithms.build(config.replace(**(OPTIONS | FAMILY)[name]))
    return _in_a_loop(model, data) if model.compiled else _one_a_call(model, data)


class QueryPass(MAML):
    """The query loss under θ itself, and its gradient: what every further query loss of MAML++ cannot do without."""

    def meta_loss(self, weights: Weights, task: Episodes, epoch: Any = 0) -> tf.Tensor:
        """Of one task, []."""
        return self.loss_func(self.predict(weights, task.inputa, task.inputb), task.labelb)


def set_threads(name: str, config: Config) -> None:
    """The threads of a formulation: ours as main.py sets them, the official structure TensorFlow's default."""
    if name not in (PLAIN, WHOLE):
        set_up_threads(config)


def _official(config: Config, data: DataGenerator, every_step: bool) -> Formulation:
    """The official structure; episodes are given, one meta-update a call."""
    network = Network.from_config(config)
    fresh = network.init(config.seed)
    episodes = data.episodes("train", 0, config.meta_batch_size)

    @tf.function(autograph=False)
    def update(weights, adam, episodes):
        return official_structure.metatrain_update(config, network, weights, adam, episodes, every_step)

    def run(count: int) -> float:
        weights, adam = fresh, adam_init(fresh)
        for _ in range(count):
            weights, adam, losses = update(weights, adam, episodes)
        tf.test.experimental.sync_devices()
        return float(losses[config.num_updates - 1] if every_step else losses)

    return Formulation(run, 1 if config.classification else 5)


def _keras(config: Config, data: DataGenerator) -> Formulation:
    """The network written in Keras, by our own learner of any model."""
    from benchmarks.peer_keras import learner_of

    network = Network.from_config(config)
    learner = learner_of(config, network, network.init(config.seed))
    return _one_a_call(learner, data) if config.classification else _in_a_loop(learner, data)


def _peer(name: str, config: Config, data: DataGenerator) -> Formulation:
    """Another library, which only this process needs; many a call where ours makes many and the library can."""
    library, network = importlib.import_module(f"benchmarks.peer_{PEERS[name]}"), Network.from_config(config)
    weights = {key: weight.numpy() for key, weight in network.init(config.seed).items()}
    episodes = [tensor.numpy() for tensor in data.episodes("train", 0, config.meta_batch_size)]
    run = library.make_run(config, network, weights, episodes, vmap=name in (JAX_VMAP, TORCH_VMAP))
    in_a_loop = UPDATES_IN_A_LOOP if PEERS[name] == "jax" else 5
    return Formulation(run, 1 if config.convolutional else in_a_loop)


def _one_a_call(model: Algorithm, data: DataGenerator) -> Formulation:
    """Convolutional networks; episodes are given, one meta-update a call."""
    fresh, episodes = model.init_state(), data.episodes("train", 0, model.config.meta_batch_size)
    one = tf.function(functools.partial(update, model, iteration=0), autograph=False)

    def run(count: int) -> float:
        state = fresh
        for _ in range(count):
            state, loss = one(state, episodes)
        tf.test.experimental.sync_devices()
        return float(loss)

    return Formulation(run, 1)


def _in_a_loop(model: Algorithm, data: DataGenerator) -> Formulation:
    """Fully connected networks, as training runs them: many a call, episodes sampled inside."""
    fresh, many = model.init_state(), make_update(model, data)

    def run(count: int) -> float:
        loss = many(fresh, tf.constant(0), tf.constant(count)).loss
        tf.test.experimental.sync_devices()
        return float(loss)

    return Formulation(run, UPDATES_IN_A_LOOP)
