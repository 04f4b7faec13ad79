"""Updates and trainings as XLA modules; `benchmarks/gpu/run.py` runs them by JAX.

  python -m benchmarks.gpu.export update omniglot_5w1s update.npz
  python -m benchmarks.gpu.export training omniglot_20w1s training.npz --data_dir=data/omniglot
  python -m benchmarks.gpu.export fetch omniglot_20w1s trained.npz logs/omniglot20way --data_dir=data/omniglot

`update` writes a meta-update of a setting on noise, with what this machine computes from it. `training` writes the
loop of `maml.training.updates` as TensorFlow would compile it on a GPU, with the images as an input. What comes back
from a training is an ordinary run: `fetch` writes its folder, and `main.py` goes on with it or tests it.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.settings import SETTINGS, random_data
from maml import algorithms, machine
from maml.algorithms import adam, adapting
from maml.algorithms.protocol import Algorithm
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.models import official
from maml.models.official import Network
from maml.training import checkpoints, updates
from maml.training.checkpoints import Progress
from maml.training.loop import restore_latest
from maml.training.runs import record_run, run_folder

# Not as in SETTINGS, whose inner rate is not the paper's.
MINIIMAGENET = {"datasource": "miniimagenet", "num_updates": 5, "update_batch_size": 1}
TRAININGS = {
    "omniglot_5w1s": SETTINGS["omniglot_5w1s"].flags,
    "omniglot_20w1s": SETTINGS["omniglot_20w1s"].flags,
    "miniimagenet_5w1s": MINIIMAGENET,
    "miniimagenet_5w5s": MINIIMAGENET | {"update_batch_size": 5},
    "miniimagenet_5w1s_first_order": MINIIMAGENET | {"stop_grad": True},
}
CONSTANTS = [(adam, "BETA_1"), (adam, "BETA_2"), (adam, "EPSILON"), (adapting, "GRADIENT_LIMIT")]
CONSTANTS += [(official, "BATCH_NORM_EPSILON"), (official, "CONV_BLOCKS")]
KEPT = 1000  # checkpoints of a training that comes back


def lowered(function: Callable[..., Any], inputs: list[tf.Tensor]) -> np.ndarray:
    """The serialized HLO module of a function of flat tensors, uint8."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    return np.frombuffer(compiled.experimental_get_compiler_ir(*inputs)(stage="hlo_serialized"), np.uint8)


def update(config: Config, data: DataGenerator) -> dict[str, np.ndarray]:
    """A meta-update, what goes in, and what comes out of it here."""
    model = algorithms.build(config)
    episodes = data.episodes("train", 0, config.meta_batch_size)
    if config.classification:  # every image repeats its first pixels, for a small file
        episodes = episodes._replace(inputa=_repeated(episodes.inputa), inputb=_repeated(episodes.inputb))
    inputs = (model.init_state(), episodes)
    flat = tf.nest.flatten(inputs)

    def compute(*flat: tf.Tensor) -> list[tf.Tensor]:
        state, episodes = tf.nest.pack_sequence_as(inputs, list(flat))
        new, loss = updates.update(model, state, episodes, tf.constant(0))
        return [*tf.nest.flatten(new), loss]

    outputs = tf.function(compute, jit_compile=True, autograph=False)(*flat)
    return (
        {"hlo": lowered(compute, flat), "facts": np.array(json.dumps(facts(config)))}
        | numbered("in", flat)
        | numbered("out", outputs)
    )


def facts(config: Config) -> dict[str, Any]:
    """What `benchmarks/gpu/peer.py` has to know of the project."""
    network = Network.from_config(config)
    read = ("kind", "dim_hidden", "norm", "image_size", "max_pool", "channels", "flat_head")
    flags = ("classification", "update_batch_size", "update_lr", "num_updates", "clips_gradient", "meta_lr")
    return {
        "constants": {name: getattr(module, name) for module, name in CONSTANTS},
        "config": {name: getattr(config, name) for name in flags},
        "network": {name: getattr(network, name) for name in read} | {"adapted": sorted(network.adapted)},
        "weights": sorted(network.init(0)),
    }


def _repeated(images: tf.Tensor, most: int = 784) -> tf.Tensor:
    """Images whose pixels [..., pixels] are their first ones over and over."""
    pixels = images.shape[-1]
    return tf.tile(images[..., :most], [1, 1, -(-pixels // most)])[..., :pixels]


def numbered(name: str, tensors: list[tf.Tensor]) -> dict[str, np.ndarray]:
    """Tensors under numbered names."""
    return {f"{name}{i}": tensor.numpy() for i, tensor in enumerate(tensors)}


def loop(model: Algorithm, data: DataGenerator) -> Callable[..., list[tf.Tensor]]:
    """The loop over iterations as a function of flat tensors.

    Returns:
        (images, first, count, *state) → [*state, the last loss, whether all is finite].
    """
    table, given = data.tables["train"], copy.copy(data)
    rows, counts = table.first.numpy(), table.counts.numpy()
    like = model.init_state()

    def compute(images: tf.Tensor, first: tf.Tensor, count: tf.Tensor, *flat: tf.Tensor) -> list[tf.Tensor]:
        # What is captured from outside would be an input of the module, too.
        own = table._replace(images=images, first=tf.constant(rows), counts=tf.constant(counts))
        given.tables = {"train": own}
        updated = updates.make_update(model, given)(tf.nest.pack_sequence_as(like, list(flat)), first, count)
        return [*tf.nest.flatten(updated.state), updated.loss, updated.finite]

    return compute


def training(config: Config, data: DataGenerator, with_images: bool) -> dict[str, np.ndarray]:
    """The loop, and the state of a run so far (of a fresh one where `config.logdir` has none)."""
    model = algorithms.build(data.config)
    state, progress = restore_latest(run_folder(config), model) or (model.init_state(), None)
    images, flat = data.tables["train"].images, tf.nest.flatten(state)
    hlo = lowered(loop(model, data), [images, tf.constant(0), tf.constant(0), *flat])
    counts = {"first": np.int32(progress.iteration if progress else 0), "weights": np.int32(len(state.weights))}
    return {"hlo": hlo} | counts | ({"images": images.numpy()} if with_images else {}) | numbered("in", flat)


def fetch(config: Config, data: DataGenerator, trained: Path) -> Path:
    """Writes a training that came back as a run: weights on the way, and the last state; returns its folder."""
    model, folder = algorithms.build(data.config), run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    record_run(folder, config, data.fingerprint)
    like = model.init_state()
    with np.load(trained) as file:

        def read(prefix: str, structure: Any) -> Any:
            count = len(tf.nest.flatten(structure))
            return tf.nest.pack_sequence_as(structure, [tf.constant(file[f"{prefix}/{i}"]) for i in range(count)])

        last = int(file["iteration"])
        on_the_way = {int(name.split("/")[0]) for name in file.files if name[0].isdigit()} - {last}
        for iteration in on_the_way:
            checkpoints.save_weights(folder / f"model{iteration}", model, read(f"{iteration}", like.weights))
        progress = Progress(last, np.zeros([0, len(model.reported)]), -np.inf)
        checkpoints.save(folder, model, read("state", like), progress, keep=KEPT)
    return folder


def main() -> None:
    """Writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, names in (("update", SETTINGS), ("training", TRAININGS), ("fetch", TRAININGS)):
        one = commands.add_parser(command)
        one.add_argument("name", choices=list(names))
        one.add_argument("file", type=Path)
        if command != "update":
            one.add_argument("logdir", help="folder of the run", nargs=None if command == "fetch" else "?", default=".")
            one.add_argument("--data_dir", default="")
    args = parser.parse_args()
    begin = time.perf_counter()
    machine.on_gpu = lambda: True  # what TensorFlow would compile if it saw one
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if args.command == "update":
        setting = SETTINGS[args.name]
        written = update(setting.config, random_data(setting.config, setting.classes, setting.images))
    else:
        given = {"logdir": args.logdir} | ({"data_dir": args.data_dir} if args.data_dir else {})
        config = Config.from_flags(TRAININGS[args.name] | given)
        data = DataGenerator(config, ("train", "val") if args.command == "fetch" else ("train",))
        if args.command == "fetch":
            print(fetch(config, data, args.file))
            return
        written = training(config, data, with_images=config.datasource == "omniglot")
    np.savez_compressed(args.file, **written)  # type: ignore[arg-type]
    print(f"{args.file}: module of {len(written['hlo'])} bytes, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
