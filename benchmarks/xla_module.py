"""Trainings as XLA modules, for a GPU on a machine without TensorFlow: `benchmarks/run_xla_module.py` runs them by JAX.

  python -m benchmarks.xla_module update omniglot_5w1s omniglot_5w1s.npz
  python -m benchmarks.xla_module training omniglot_20w1s training.npz --data_dir=data/omniglot
  python -m benchmarks.xla_module fetch omniglot_20w1s trained.npz logs/omniglot20way --data_dir=data/omniglot

`update` writes a meta-update of a setting on noise, with what this machine computes from it; `training` writes the
loop of `maml.training.updates`, as it is compiled where TensorFlow sees a GPU, with the images as an input. What comes
back from a training is an ordinary run: `fetch` writes its folder, and `main.py` goes on with it or tests it.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import maml.machine
from benchmarks.settings import SETTINGS, random_data

for module in list(sys.modules.values()):  # what TensorFlow would compile if it saw a GPU
    if getattr(module, "__name__", "").startswith("maml") and hasattr(module, "on_gpu"):
        module.on_gpu = lambda: True

from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.training import checkpoints, updates
from maml.training.checkpoints import Progress
from maml.training.loop import restore_latest
from maml.training.runs import record_run, run_folder

MINIIMAGENET = {"datasource": "miniimagenet", "num_updates": 5, "update_batch_size": 1}
OMNIGLOT_5 = SETTINGS["omniglot_5w1s"].flags
OMNIGLOT_20 = SETTINGS["omniglot_20w1s"].flags
TRAININGS = {
    "omniglot_5w1s": OMNIGLOT_5,
    "omniglot_20w1s": OMNIGLOT_20,
    "miniimagenet_5w1s": MINIIMAGENET,
    "miniimagenet_5w5s": MINIIMAGENET | {"update_batch_size": 5},
    "miniimagenet_5w1s_first_order": MINIIMAGENET | {"stop_grad": True},
}


def lowered(function: Any, inputs: list[tf.Tensor]) -> np.ndarray:
    """The serialized HLO module of a function of flat tensors, uint8."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    return np.frombuffer(compiled.experimental_get_compiler_ir(*inputs)(stage="hlo_serialized"), np.uint8)


def update(setting: str) -> dict[str, np.ndarray]:
    """A meta-update of one of the settings, what goes in, and what comes out of it here."""
    config = SETTINGS[setting].config
    data = random_data(config, SETTINGS[setting].classes, SETTINGS[setting].images)
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
    return {"hlo": lowered(compute, flat)} | arrays("in", flat) | arrays("out", outputs)


def _repeated(images: tf.Tensor, most: int = 784) -> tf.Tensor:
    """Images whose pixels [..., pixels] are their first ones over and over."""
    pixels = images.shape[-1]
    return tf.tile(images[..., :most], [1, 1, -(-pixels // most)])[..., :pixels]


def arrays(name: str, tensors: list[tf.Tensor]) -> dict[str, np.ndarray]:
    """Tensors under numbered names."""
    return {f"{name}{i}": tensor.numpy() for i, tensor in enumerate(tensors)}


def setting_of(name: str, data_dir: str) -> Config:
    """The flags of a training."""
    return Config.from_flags(TRAININGS[name] | ({"data_dir": data_dir} if data_dir else {}))


def training(name: str, data_dir: str, logdir: str = "") -> dict[str, np.ndarray]:
    """The loop over iterations: (images, first, count, *state) → (*state, loss, finite); a run so far, or a fresh state."""
    config = setting_of(name, data_dir)
    data = DataGenerator(config, ("train",))
    model = algorithms.build(data.config)
    state, first = model.init_state(), 0
    restored = restore_latest(run_folder(config.replace(logdir=logdir)), model) if logdir else None
    if restored:
        state, first = restored[0], restored[1].iteration
    table = data._tables["train"]
    rows, counts = table.first.numpy(), table.counts.numpy()
    flat = tf.nest.flatten(state)

    def compute(images: tf.Tensor, first: tf.Tensor, count: tf.Tensor, *flat: tf.Tensor) -> list[tf.Tensor]:
        data._tables["train"] = table._replace(images=images, first=tf.constant(rows), counts=tf.constant(counts))
        updated = updates.make_update(model, data)(tf.nest.pack_sequence_as(state, list(flat)), first, count)
        return [*tf.nest.flatten(updated.state), updated.loss, updated.finite]

    hlo = lowered(compute, [table.images, tf.constant(0), tf.constant(0), *flat])
    small = {"images": table.images.numpy()} if config.datasource == "omniglot" else {}
    return {"hlo": hlo, "first": np.int32(first), "weights": np.int32(len(state.weights))} | small | arrays("in", flat)


def fetch(name: str, data_dir: str, trained: Path, logdir: str) -> Path:
    """Writes the checkpoints of a training that came back as a run; returns its folder."""
    config = setting_of(name, data_dir).replace(logdir=logdir)
    data = DataGenerator(config, ("train", "val"))
    model = algorithms.build(data.config)
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    record_run(folder, config, data.fingerprint)
    template = model.init_state()
    with np.load(trained) as file:
        for iteration in map(int, file["iterations"]):
            values = [tf.constant(file[f"{iteration}/{i}"]) for i in range(len(tf.nest.flatten(template)))]
            progress = Progress(iteration, np.zeros([0, len(model.reported)]), -np.inf)
            checkpoints.save(folder, model, tf.nest.pack_sequence_as(template, values), progress, keep=1000)
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
            one.add_argument("logdir", nargs="?" if command == "training" else None, default="")
            one.add_argument("--data_dir", default="")
    args = parser.parse_args()
    begin = time.perf_counter()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if args.command == "fetch":
        print(fetch(args.name, args.data_dir, args.file, args.logdir))
        return
    written = update(args.name) if args.command == "update" else training(args.name, args.data_dir, args.logdir)
    np.savez_compressed(args.file, **written)
    print(f"{args.file}: module of {len(written['hlo'])} bytes, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
