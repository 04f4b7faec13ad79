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
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms.protocol import Algorithm
from maml.config import Config
from maml.errors import UserError
from maml.files import sync, write_text
from maml.models.protocol import Weights

KEEP = 10
TRAINING = "training/"  # before the names of what is no weight
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
    found = best_last(folder) if which == "best" else list_checkpoints(folder)
    if iteration != -1:
        wanted = [checkpoint for checkpoint in found if checkpoint.iteration == iteration]
        if not wanted:
            there = ", ".join(str(checkpoint.iteration) for checkpoint in found) or "none"
            raise UserError(f"{folder}: no checkpoint of iteration {iteration}; there are: {there}")
        return wanted[0]
    if not found:
        raise UserError(f"{folder}: holds no {which} checkpoint; train this run first")
    return found[-1]


def chosen(folder: Path, which: str, iteration: int) -> list[Checkpoint]:
    """The checkpoint of a run folder to use, or those of an "ensemble": all of the best that were kept, the best last.

    Args:
        which: as in `choose`, or "ensemble".
        iteration: -1, or one checkpoint's.

    Raises:
        UserError: there is none.
    """
    found = choose(folder, "best" if which == "ensemble" else which, iteration)
    return best_last(folder) if which == "ensemble" and iteration == -1 else [found]


def restore_chosen(folder: Path, config: Config, model: Algorithm) -> tuple[Path, Weights | list[Weights]]:
    """The checkpoint that a setting names and its weights; the names joined and a list of weights, if it is several.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    found = chosen(folder, config.test_checkpoint, config.test_iter)
    weights = [restore(checkpoint, model)[0].weights for checkpoint in found]
    names = "_".join(checkpoint.prefix.name for checkpoint in found)
    return folder / names, weights if len(weights) > 1 else weights[0]


def best_last(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run folder that did best in validation, the best one last."""
    found = list_checkpoints(folder, "best")
    if len(found) < 2:
        return found
    values = {checkpoint: float(_read(checkpoint.prefix).get("training/best", -np.inf)) for checkpoint in found}
    return sorted(found, key=lambda checkpoint: (values[checkpoint], -checkpoint.iteration))


def save_best(folder: Path, model: Algorithm, state: Any, progress: Progress, value: float, keep: int) -> None:
    """Writes `best<iteration>` if its value in validation is among the `keep` best, then removes the others.

    Raises:
        UserError: it could not be written.
    """
    others = [checkpoint for checkpoint in best_last(folder) if checkpoint.iteration != progress.iteration]
    kept = others[-keep:]
    if len(kept) == keep and value <= float(_read(kept[0].prefix).get("training/best", -np.inf)):
        return
    save(folder, model, state, progress._replace(best=value), stem="best", keep=len(others) + 1)
    for worse in others[: len(others) + 1 - keep]:
        remove(worse)


def save(folder: Path, model: Algorithm, state: Any, progress: Progress, stem: str = "model", keep: int = KEEP) -> Path:
    """Writes `<stem><iteration>`, then removes all but the newest `keep` of that stem.

    A checkpoint exists once its `.index` does, and that file is moved into place last.

    Args:
        model: whose state it is.

    Returns:
        The checkpoint's prefix.

    Raises:
        UserError: it could not be written, because the disk is full for example.
    """
    prefix = folder / f"{stem}{progress.iteration}"
    tensors = _named(state, model.checkpoint_names(state.weights)) | {
        "training/iteration": tf.constant(progress.iteration, tf.int64),
        "training/pending": tf.constant(progress.pending, tf.float64),
        "training/best": tf.constant(progress.best, tf.float64),
        "training/skipped": tf.constant(progress.skipped, tf.int64),
    }
    write(prefix, tensors)
    checkpoints = list_checkpoints(folder, stem)
    # After a restart from an older checkpoint, newer ones are of a future that will be made again.
    for old in checkpoints[:-keep]:
        remove(old)
    if stem == "model":
        write_index(folder)
    return prefix


def save_weights(prefix: Path, model: Algorithm, weights: Weights) -> None:
    """Writes weights alone, as the official code does: for giving a run away, not for going on.

    Raises:
        UserError: they could not be written.
    """
    write(prefix, {official: weights[name] for name, official in model.checkpoint_names(weights).items()})


def write(prefix: Path, tensors: dict[str, tf.Tensor]) -> None:
    """Writes a checkpoint's tensors by their names.

    Raises:
        UserError: they could not be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=prefix.parent) as temporary:
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


def restore(checkpoint: Checkpoint, model: Algorithm) -> tuple[Any, Progress]:
    """Reads a checkpoint, ours or the official code's.

    An official one has no Adam state and no iteration: Adam starts anew, and training goes on at
    the iteration in the name, as the official code does.

    Args:
        model: whose state it is to be.

    Raises:
        UserError: damaged, or of another network; the message lists what differs.
    """
    prefix, template = checkpoint.prefix, model.init_state()
    tensors = _read(prefix)
    expected = model.checkpoint_names(template.weights)
    # Before normalizations had their official names, they were called as they are here.
    earlier = {name: name if "/" in name else official for name, official in expected.items()}
    if not set(expected.values()) <= set(tensors) and set(earlier.values()) <= set(tensors):
        expected = earlier
    _check_network(prefix, tensors, template.weights, expected)
    ours = "training/iteration" in tensors
    wanted = _named(template, expected)
    missing = [name for name in wanted if name not in tensors and (ours or not name.startswith(TRAINING))]
    if missing:
        raise UserError(f"{prefix}: the checkpoint is of another algorithm: {missing[0]} is missing")
    found = {name: tf.cast(tensors[name], like.dtype) if name in tensors else like for name, like in wanted.items()}
    state = tf.nest.pack_sequence_as(template, [found[name] for name in _paths(template, expected)])
    if not ours:
        return state, Progress(checkpoint.iteration, np.zeros([0, 2]), -np.inf)
    progress = Progress(
        int(tensors["training/iteration"]),
        tensors["training/pending"],
        float(tensors["training/best"]),
        int(tensors.get("training/skipped", 0)),
    )
    return state, progress


def _read(prefix: Path) -> dict[str, np.ndarray]:
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        return {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{prefix}: the checkpoint is damaged or incomplete ({reason}); restore or remove it"
        ) from error


def _named(state: Any, names: dict[str, str]) -> dict[str, tf.Tensor]:
    """A state's tensors by their names in a checkpoint."""
    return dict(zip(_paths(state, names), tf.nest.flatten(state), strict=True))


def _paths(state: Any, names: dict[str, str]) -> list[str]:
    """The names of a state's tensors, in the order of tf.nest.flatten.

    Weights have their own names; what else a training changes is called `training/<field>/…/<weight>`.
    """

    def walk(value: Any, prefix: str) -> list[str]:
        if hasattr(value, "_fields"):
            return [
                path for name, part in zip(value._fields, value, strict=True) for path in walk(part, f"{prefix}/{name}")
            ]
        if isinstance(value, dict):
            return [f"{prefix}/{names.get(name, name)}" for name in sorted(value)]
        return [prefix]

    weights = TRAINING + "weights/"
    return [path.removeprefix(weights) for path in walk(state, TRAINING.rstrip("/"))]


def _check_network(prefix: Path, tensors: dict[str, np.ndarray], weights: Weights, names: dict[str, str]) -> None:
    """Raises UserError that lists what a checkpoint lacks, has besides, or has in another shape."""
    expected = {official: tuple(weights[name].shape) for name, official in names.items()}
    found = {name: array.shape for name, array in tensors.items() if not name.startswith(TRAINING)}
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
