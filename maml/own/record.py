"""What a run keeps of the user's own code, so that it does not go on with another model or loss."""

import inspect
from pathlib import Path
from typing import Any

import tensorflow as tf

from maml.errors import UserError
from maml.files import read_json
from maml.models.protocol import Model
from maml.own.code import code_of
from maml.tasks.image_files import listed

ABOUT = "own.json"


def about_of(model: Any, tasks: Any, loss: Any, adapt: Any, own: Model) -> dict[str, Any]:
    """What a reader of the run wants to know of your own code: its source, as text."""
    forward = model[1] if isinstance(model, tuple) else type(model)
    return {
        "loss": loss if isinstance(loss, str) else _source(loss),
        "compared_loss": loss if isinstance(loss, str) else code_of(loss),
        "adapt": adapt if isinstance(adapt, str) else _source(adapt),
        "model": _source(forward),
        "tasks": _source(tasks if callable(tasks) else type(tasks)),
        "weights": {name: list(weight.shape) for name, weight in own.init(0).items()},
        "adapted": sorted(own.adapted),
    }


def check_same_model(folder: Path, about: dict[str, Any]) -> None:
    """Raises UserError if a folder holds a run of another model or loss, or one that adapts other weights."""
    if not (folder / ABOUT).exists():
        return
    before, now = read_json(folder / ABOUT), about["weights"]
    if before.get("weights") != now:
        other = sorted(set(map(str, before.get("weights", {}).items())) ^ set(map(str, now.items())))
        raise UserError(
            f"{folder} holds a run of another model (they differ in {listed(other)}): choose another logdir, or start "
            "over with resume=False"
        )
    for name, what in (("adapted", "that adapts other weights"), ("compared_loss", "with another loss")):
        if before.get(name, about[name]) != about[name]:
            raise UserError(f"{folder} holds a run {what}: choose another logdir, or start over with resume=False")


def shapes(like: tuple) -> list[Any]:
    """Shape and type of each part of a task, for `export`; of a structure, a list of them."""
    each = [[{"shape": list(a.shape), "dtype": str(a.dtype)} for a in tf.nest.flatten(part)] for part in like]
    return [part[0] if len(part) == 1 else part for part in each]


def _source(of: Any) -> str:
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        return repr(of)
