"""Trains every algorithm for some updates on 1, 2 and (MAML) 4 replicas, and prints how far these differ, as JSON.

  python -m tests.devices.divided
  python -m tests.devices.divided --updates=200 --dtype=float64 reptile protonet
  python -m tests.devices.divided --updates=200 --xla "maml, sinusoid"

A program of its own: how many devices the processor is, TensorFlow can be told once.
"""

import argparse
import json
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.models.keras_model import KerasModel
from maml.models.official import Network
from maml.own.algorithm import OwnMAML
from maml.own.tasks import OwnTasks
from maml.training.evaluation import Evaluator
from maml.training.updates import make_update
from tests.image_fixtures import write_class_folders

IMAGES = {"datasource": "folder", "image_size": 20, "channels": 1, "num_classes": 3, "update_batch_size": 1}
IMAGES |= {"query_size": 2, "num_filters": 4, "max_pool": False, "meta_batch_size": 4}
SINUSOID = {"norm": "None", "meta_batch_size": 4, "update_batch_size": 3, "test_num_updates": 1}
TWO = {"num_updates": 2, "test_num_updates": 2, "update_lr": 0.1}
CASES = {
    "maml, sinusoid": SINUSOID,
    "maml, images": IMAGES | TWO,
    "maml, accumulated": IMAGES | TWO | {"accumulate": 2},
    "first order": IMAGES | TWO | {"stop_grad": True},
    "anil": IMAGES | TWO | {"algorithm": "anil"},
    "metasgd": IMAGES | TWO | {"algorithm": "metasgd"},
    "maml++": IMAGES | TWO | {"algorithm": "maml++", "conv": True, "keep_best": 1},
    "reptile": IMAGES
    | {"algorithm": "reptile", "inner_iters": 3, "inner_batch": 2, "eval_inner_iters": 2, "train_shots": 2},
    "protonet": IMAGES | {"algorithm": "protonet", "train_num_classes": 3},
    "matching": IMAGES | {"algorithm": "matching", "train_num_classes": 3},
    "keras": {"datasource": "own", "loss": "mse", "norm": "None", "meta_batch_size": 4},
}
FEW = 2  # run eagerly: tracing takes longer
UPDATES = {"maml, sinusoid": 200, "maml++": 3}
REPLICAS = {"maml, images": (2, 4)}


def own_task(rng: np.random.Generator) -> tuple:
    """A task of your own."""
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    return x[:3], y[:3], x[3:], y[3:]


def built(config: Config) -> tuple:
    """The learner and its tasks."""
    if config.datasource != "own":
        return algorithms.build(config), DataGenerator(config, ("train",))
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(config.dtype)
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    return OwnMAML(config, KerasModel(network, dtype=config.dtype), "mse"), OwnTasks(config, {"train": own_task})


def next_digit(tensor: tf.Tensor) -> tf.Tensor:
    """The numbers next to those of a tensor; what isn't real as it is."""
    return (
        tf.math.nextafter(tensor, tf.fill(tensor.shape, tf.constant(np.inf, tensor.dtype)))
        if tensor.dtype.is_floating
        else tensor
    )


def trained(config: Config, updates: int, replicas: int, begin: Callable = tf.identity) -> dict[str, np.ndarray]:
    """Everything that some updates, their summaries, and an evaluation return, and by itself the weights.

    Args:
        begin: of a tensor of the initial state; what the training begins with.
    """
    devices = [f"CPU:{number}" for number in range(replicas)]
    with (tf.distribute.MirroredStrategy(devices) if replicas > 1 else tf.distribute.get_strategy()).scope():
        learner, data = built(config)
        state = tf.nest.map_structure(begin, learner.init_state())
        updated = make_update(learner, data, updates)(state, tf.constant(0), tf.constant(updates))
        measures = Evaluator(learner, data).batch(
            learner.init_state().weights, "train", 0, 2, config.evaluation_updates
        )
        assert all(len(values) == 2 * replicas for values in measures.values())
        all_of_it = tf.nest.flatten((updated, [values[:2] for values in measures.values()]))
        weights = {name: np.asarray(weight, np.float64) for name, weight in updated.state.weights.items()}
        return weights | {f"result {number}": np.asarray(tensor, np.float64) for number, tensor in enumerate(all_of_it)}


def difference(first: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays, relative to the largest entry."""
    return float(np.abs(other - first).max() / max(np.abs(first).max(), 1e-30)) if first.size else 0.0


def differences(name: str, flags: dict, updates: int, also_from_next_digit: bool) -> dict[str, dict[str, float]]:
    """How far the results of one replica are from those of others, and from its own if it begins a digit away.

    The one computes the batch as a whole, without `accumulate`.
    """
    config = Config.from_flags(flags)
    one = trained(config.replace(accumulate=1), updates, 1)
    others = {f"{replicas} replicas": trained(config, updates, replicas) for replicas in REPLICAS.get(name, (2,))}
    if also_from_next_digit:
        others["next digit"] = trained(config, updates, 1, next_digit)
    return {label: {key: difference(one[key], other[key]) for key in one} for label, other in others.items()}


def main() -> None:
    """Prints {case: {replicas: the largest difference}}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="which; all unless given")
    several = f"{FEW} unless given, but {UPDATES}; if given, one replica also begins at the next digit"
    parser.add_argument("--updates", type=int, help=several)
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float32")
    parser.add_argument("--each", action="store_true", help="of every weight")
    parser.add_argument("--xla", action="store_true", help="compile what training compiles: longer than a few updates")
    given = parser.parse_args()
    if not given.xla:
        Network.compiled = False  # type: ignore[method-assign]
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 4)
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as photos:
        write_class_folders(photos, {"train": 5, "val": 4, "test": 4}, 6, size=20, channels=1)
        for name in given.cases or CASES:
            flags = CASES[name] | {"dtype": given.dtype}
            if flags.get("datasource") == "folder":
                flags["data_dir"] = photos
            updates = given.updates or UPDATES.get(name, FEW)
            tf.config.run_functions_eagerly(updates <= FEW)
            found[name] = differences(name, flags, updates, given.updates is not None)
            if not given.each:
                found[name] = {label: max(each.values()) for label, each in found[name].items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
