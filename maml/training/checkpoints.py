"""Checkpoints `model<iteration>` in the official layout, with what an exact resume needs besides.

A checkpoint is a TensorFlow bundle (`.index` and `.data-00000-of-00001`) that holds the
trainable variables under their official names, so the official code can load ours and we load
its own. Ours also hold Adam's state, the iteration and the running sums of the printed lines.
"""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms.adam import AdamState, adam_init
from maml.algorithms.protocol import TrainState
from maml.errors import UserError
from maml.files import sync, write_text
from maml.models.official import Weights

KEEP = 10
UNFINISHED = ".saving-"
DATA_SUFFIX = ".data-00000-of-00001"


class Progress(NamedTuple):
    """Where a training stands, besides its weights.

    iteration: updates done, pre-training included; the next one to do.
    pending: float64 [n, 2], pre- and post-update values of the summaries since the last printed line.
    best: best validation value so far (accuracy, or minus the loss); -inf before the first.
    skipped: updates left out because they were not finite.
    """

    iteration: int
    pending: np.ndarray
    best: float
    skipped: int = 0


class Checkpoint(NamedTuple):
    """A checkpoint on the disk: its prefix (path without suffix) and the iteration in its name."""

    prefix: Path
    iteration: int


def official_names(weights: Weights) -> dict[str, str]:
    """The official variable of each weight: {"conv1": "model/conv1", "b1": "model/Variable", …}.

    The official code names kernels and head itself; TensorFlow named the others in the order in
    which they were made. Names with a slash stay as they are.
    """
    names, unnamed = {}, 0
    convolutional = "conv1" in weights
    for name in weights:
        if "/" in name:
            names[name] = name
        elif convolutional and (name.startswith("conv") or name in ("w5", "b5")):
            names[name] = f"model/{name}"
        else:
            names[name] = "model/Variable" + (f"_{unnamed}" if unnamed else "")
            unnamed += 1
    return names


def list_checkpoints(folder: Path, stem: str = "model") -> list[Checkpoint]:
    """The checkpoints of a run folder, oldest first."""
    found = []
    for index in folder.glob(f"{stem}*.index"):
        match = re.fullmatch(rf"{stem}(\d+)\.index", index.name)
        if match:
            found.append(Checkpoint(index.with_suffix(""), int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.iteration)


def choose(folder: Path, which: str, iteration: int) -> Checkpoint:
    """The checkpoint of a run folder to test.

    Args:
        which: "latest", or "best" by validation.
        iteration: the number in its name, or -1 for any.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    found = list_checkpoints(folder, "best" if which == "best" else "model")
    if iteration != -1:
        wanted = [checkpoint for checkpoint in found if checkpoint.iteration == iteration]
        if not wanted:
            there = ", ".join(str(checkpoint.iteration) for checkpoint in found) or "none"
            raise UserError(f"{folder}: no checkpoint of iteration {iteration}; there are: {there}")
        return wanted[0]
    if not found:
        raise UserError(f"{folder}: holds no {which} checkpoint; train this run first")
    return found[-1]


def save(folder: Path, state: TrainState, progress: Progress, stem: str = "model", keep: int = KEEP) -> Path:
    """Writes `<stem><iteration>`, then removes all but the newest `keep` of that stem.

    A checkpoint exists once its `.index` does, and that file is moved into place last.

    Returns:
        The checkpoint's prefix.

    Raises:
        UserError: it could not be written, because the disk is full for example.
    """
    prefix = folder / f"{stem}{progress.iteration}"
    tensors = _state_tensors(state) | {
        "training/iteration": tf.constant(progress.iteration, tf.int64),
        "training/pending": tf.constant(progress.pending, tf.float64),
        "training/best": tf.constant(progress.best, tf.float64),
        "training/skipped": tf.constant(progress.skipped, tf.int64),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
            written = Path(temporary, prefix.name)
            tf.raw_ops.SaveV2(
                prefix=str(written),
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=list(tensors.values()),
            )
            sync(_index(written))
            sync(_data(written))
            _index(prefix).unlink(missing_ok=True)
            os.replace(_data(written), _data(prefix))
            os.replace(_index(written), _index(prefix))
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{prefix}: the checkpoint could not be written ({reason}); free some space") from error
    checkpoints = list_checkpoints(folder, stem)
    # After a restart from an older checkpoint, newer ones are of a future that will be made again.
    for old in checkpoints[:-keep]:
        remove(old)
    if stem == "model":
        write_index(folder)
    return prefix


def write_index(folder: Path) -> None:
    """Writes the `checkpoint` file by which TensorFlow 1 finds the newest checkpoint."""
    names = [checkpoint.prefix.name for checkpoint in list_checkpoints(folder)]
    lines = [f'model_checkpoint_path: "{names[-1]}"'] + [f'all_model_checkpoint_paths: "{name}"' for name in names]
    write_text(folder / "checkpoint", "\n".join(lines) + "\n")


def remove_unfinished(folder: Path) -> None:
    """Deletes what trainings that were killed while they saved left in a run folder."""
    for path in folder.glob(UNFINISHED + "*"):
        shutil.rmtree(path, ignore_errors=True)


def remove(checkpoint: Checkpoint) -> None:
    """Deletes a checkpoint, its `.index` first, so that no half of one is ever listed."""
    for path in (_index(checkpoint.prefix), _data(checkpoint.prefix)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def restore(checkpoint: Checkpoint, template: TrainState) -> tuple[TrainState, Progress]:
    """Reads a checkpoint, ours or the official code's.

    An official one has no Adam state and no iteration: Adam starts anew, and training goes on at
    the iteration in the name, as the official code does.

    Args:
        template: a state of the network's shapes and types, the algorithm's `init_state()`.

    Raises:
        UserError: damaged, or of another network; the message lists what differs.
    """
    prefix = checkpoint.prefix
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        tensors = {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{prefix}: the checkpoint is damaged or incomplete ({reason}); restore or remove it"
        ) from error
    _check_network(prefix, tensors, template.weights)
    names = official_names(template.weights)

    def read(section: str, like: Weights) -> Weights:
        return {name: tf.cast(tensors[section + names[name]], weight.dtype) for name, weight in like.items()}

    weights = read("", template.weights)
    if "training/iteration" not in tensors:
        fresh = TrainState(weights, adam_init(template.pretrain.m), adam_init(template.metatrain.m))
        return fresh, Progress(checkpoint.iteration, np.zeros([0, 2]), -np.inf)

    def read_adam(section: str, like: AdamState) -> AdamState:
        step = tf.constant(tensors[f"{section}/step"], tf.int64)
        return AdamState(read(f"{section}/m/", like.m), read(f"{section}/v/", like.v), step)

    state = TrainState(
        weights,
        read_adam("training/pretrain", template.pretrain),
        read_adam("training/metatrain", template.metatrain),
    )
    progress = Progress(
        int(tensors["training/iteration"]),
        tensors["training/pending"],
        float(tensors["training/best"]),
        int(tensors.get("training/skipped", 0)),
    )
    return state, progress


def _state_tensors(state: TrainState) -> dict[str, tf.Tensor]:
    names = official_names(state.weights)
    tensors = {names[name]: weight for name, weight in state.weights.items()}
    for section, adam in (("training/pretrain", state.pretrain), ("training/metatrain", state.metatrain)):
        tensors |= {f"{section}/m/{names[name]}": value for name, value in adam.m.items()}
        tensors |= {f"{section}/v/{names[name]}": value for name, value in adam.v.items()}
        tensors[f"{section}/step"] = adam.step
    return tensors


def _check_network(prefix: Path, tensors: dict[str, np.ndarray], weights: Weights) -> None:
    """Raises UserError that lists what a checkpoint lacks, has besides, or has in another shape."""
    expected = {official: tuple(weights[name].shape) for name, official in official_names(weights).items()}
    found = {name: array.shape for name, array in tensors.items() if not name.startswith("training/")}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise UserError(f"{prefix}: the checkpoint is of another network: {'; '.join(problems)}")


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _data(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + DATA_SUFFIX)
