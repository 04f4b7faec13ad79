"""Trains every algorithm for some updates on 1, 2 and (MAML) 4 replicas, and prints how far these differ, as JSON.

A program of its own: how many devices the processor is, TensorFlow can be told once.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.models.keras_model import KerasModel
from maml.models.official import Network
from maml.own import OwnMAML
from maml.tasks.own import OwnTasks
from maml.training.evaluation import Evaluator
from maml.training.updates import make_update

IMAGES = {"datasource": "folder", "image_size": 8, "channels": 1, "num_classes": 3, "update_batch_size": 1}
IMAGES |= {"query_size": 2, "num_filters": 2, "max_pool": False, "meta_batch_size": 2, "dtype": "float64"}
SINUSOID = {"norm": "None", "meta_batch_size": 4, "dtype": "float64", "update_batch_size": 3, "test_num_updates": 1}
TWO = {"num_updates": 2, "test_num_updates": 2, "update_lr": 0.1}
CASES = {
    "maml, sinusoid": SINUSOID,
    "maml, images": IMAGES | TWO | {"meta_batch_size": 4},
    "maml, accumulated": IMAGES | TWO | {"meta_batch_size": 4, "accumulate": 2},
    "first order": IMAGES | TWO | {"stop_grad": True},
    "anil": IMAGES | TWO | {"algorithm": "anil"},
    "metasgd": IMAGES | TWO | {"algorithm": "metasgd"},
    "maml++": IMAGES | TWO | {"algorithm": "maml++", "conv": True, "keep_best": 1},
    "reptile": IMAGES
    | {"algorithm": "reptile", "inner_iters": 3, "inner_batch": 2, "eval_inner_iters": 2, "train_shots": 2},
    "protonet": IMAGES | {"algorithm": "protonet", "train_num_classes": 3},
    "matching": IMAGES | {"algorithm": "matching", "train_num_classes": 3},
    "keras": {"datasource": "own", "loss": "mse", "norm": "None", "meta_batch_size": 4, "dtype": "float64"},
}
TRACED = "maml, sinusoid"  # the others run eagerly: tracing takes longer
UPDATES = {TRACED: 200}


def own_task(rng: np.random.Generator) -> tuple:
    """A task of one's own."""
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    return x[:3], y[:3], x[3:], y[3:]


def built(config: Config) -> tuple:
    """The learner and its tasks."""
    if config.datasource != "own":
        return algorithms.build(config), DataGenerator(config, ("train",))
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float64")
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    return OwnMAML(config, KerasModel(network, dtype="float64"), "mse"), OwnTasks(config, {"train": own_task})


def trained(name: str, config: Config, replicas: int) -> list[np.ndarray]:
    """Everything that some updates, their summaries, and an evaluation return."""
    devices = [f"CPU:{number}" for number in range(replicas)]
    with (tf.distribute.MirroredStrategy(devices) if replicas > 1 else tf.distribute.get_strategy()).scope():
        learner, data = built(config)
        updates = UPDATES.get(name, 2)
        updated = make_update(learner, data, updates)(learner.init_state(), tf.constant(0), tf.constant(updates))
        measures = Evaluator(learner, data).batch(
            learner.init_state().weights, "train", 0, 2, config.evaluation_updates
        )
        once = [values[:2] for values in measures.values()]
        assert all(len(values) == 2 * replicas for values in measures.values())
        return [tensor.numpy().astype(np.float64) for tensor in tf.nest.flatten(updated)] + once


def main(folder: str, names: list[str]) -> None:
    """Prints {case: {replicas: the largest relative difference}}."""
    Network.compiled = False  # type: ignore[method-assign]  # XLA would take longer than the updates
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 4)
    differences: dict[str, dict[int, float]] = {}
    for name in names or CASES:
        given = CASES[name] | ({"data_dir": folder} if CASES[name].get("datasource") == "folder" else {})
        config = Config.from_flags(given)
        tf.config.run_functions_eagerly(name != TRACED)
        one = trained(name, config, 1)
        differences[name] = {}
        for replicas in (2, 4) if name == "maml, images" else (2,):
            for first, other in zip(one, trained(name, config, replicas), strict=True):
                difference = float(np.abs(other - first).max() / max(np.abs(first).max(), 1e-30)) if first.size else 0.0
                differences[name][replicas] = max(difference, differences[name].get(replicas, 0.0))
    print(json.dumps(differences))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
