"""The setting as a file keeps it."""

import dataclasses
import os
from typing import Any

from maml.config.flags import Flags
from maml.errors import UserError

TYPES: dict[Any, type] = {"str": str, "int": int, "float": float, "bool": bool}


def checked_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values by flag name, if every name and every type is right; `where` names their file in the error message.

    Raises:
        UserError: a flag is unknown or of another type.
    """
    fields = {field.name: TYPES.get(field.type, field.type) for field in dataclasses.fields(Flags)}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}: unknown setting {name!r}; it was written by another version")
        expected: Any = fields[name]
        accepted = (int, float) if expected is float else (expected,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise UserError(f"{where}: {name} is {value!r}, expected {expected.__name__}")
    return values


PATHS = ("logdir", "data_dir", "support", "query", "predict_csv", "export_dir")


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Values by flag name, with `~` in paths as the user's home; no shell does so behind `--logdir=`."""
    return {name: os.path.expanduser(value) if name in PATHS else value for name, value in values.items()}
