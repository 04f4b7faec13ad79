"""The setting as a file keeps it, and as Python code gives it."""

import dataclasses
import os
from typing import Any

import numpy as np

from maml.config.flags import Flags
from maml.errors import UserError

TYPES: dict[Any, type] = {"str": str, "int": int, "float": float, "bool": bool}
NEEDED: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
PATHS = ("logdir", "data_dir", "support", "query", "predict_csv", "export_dir")


def checked_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values by flag name, if every name and every type is right; `where` names their file in the error message.

    Raises:
        UserError: a flag is unknown or of another type.
    """
    fields = _types()
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}: unknown setting {name!r}; it was written by another version")
        if not _is_a(value, fields[name]):
            raise UserError(f"{where}: {name} is {value!r}, expected {fields[name].__name__}")
    return values


def typed(given: dict[str, Any]) -> dict[str, Any]:
    """Values by flag name as the command line would have them: of NumPy's types, paths and 1e4 as whole number, too.

    Raises:
        UserError: a flag is unknown or of another type.
    """
    fields, values = _types(), {}
    for name, value in given.items():
        if name not in fields:
            raise UserError(f"no flag {name}; `python main.py --helpfull` lists them")
        if isinstance(value, np.generic):
            value = value.item()
        if name in PATHS and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if fields[name] is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _is_a(value, fields[name]):
            raise UserError(f"--{name}={value!r}: must be {NEEDED[fields[name]]}")
        values[name] = float(value) if fields[name] is float else value
    return values


def _types() -> dict[str, Any]:
    return {field.name: TYPES.get(field.type, field.type) for field in dataclasses.fields(Flags)}


def _is_a(value: Any, expected: type) -> bool:
    accepted = (int, float) if expected is float else expected
    return isinstance(value, accepted) and (expected is bool or not isinstance(value, bool))


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Values by flag name, with `~` in paths as the user's home; no shell does so behind `--logdir=`."""
    return {name: os.path.expanduser(value) if name in PATHS else value for name, value in values.items()}
