"""Reads pickles that hold NumPy arrays in plain containers, and nothing else.

An ordinary unpickler runs whatever code a file names. This one knows the few names that such
data needs, and rebuilds arrays itself from their raw bytes, because NumPy's own code for that
trusts what it is told about memory.
"""

import collections
import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

_NUMBERS_AND_TEXT = re.compile(r"[biuf][1248]|[SU]\d{1,4}")


class Refused(Exception):
    """The pickle asks for something that arrays in plain containers do not need."""


def load(file: BinaryIO) -> Any:
    """The pickled object; arrays come as `Array`. Reads what Python 2 wrote, too (its text as bytes).

    Raises:
        Refused: it names anything but arrays and containers.
        Exception: what `pickle` raises on damaged bytes.
    """
    return _Unpickler(file, encoding="bytes").load()


class Array:
    """Stands for numpy.ndarray while a pickle is read.

    value: the array, once its state was read.
    """

    def __init__(self, *_: Any):
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        """Takes (version, shape, dtype, Fortran order, raw bytes)."""
        shape, kind, fortran, raw = state[-4:]
        self.value = _array(raw, kind, shape, "F" if fortran else "C")


class _Kind:
    """Stands for numpy.dtype."""

    def __init__(self, code: str | bytes, *_: Any):
        self.code = code.decode() if isinstance(code, bytes) else code
        if not _NUMBERS_AND_TEXT.fullmatch(self.code):
            raise Refused(f"an array of type {self.code!r}")
        self.dtype = np.dtype(self.code)

    def __setstate__(self, state: tuple) -> None:
        """Takes (version, byte order, ...); the rest says nothing about numbers and text."""
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused(f"an array of byte order {order!r}")
        self.dtype = np.dtype(order.replace("|", "=") + self.code)


def _array(raw: Any, kind: Any, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(raw, bytes | bytearray):
        raise Refused("an array of objects")
    if math.prod(shape) * kind.dtype.itemsize != len(raw):
        raise Refused(f"an array of shape {shape} in {len(raw)} bytes")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(raw: Any, kind: Any, shape: tuple, order: str) -> Array:
    array = Array()
    array.value = _array(raw, kind, shape, order)
    return array


def _scalar(kind: Any, raw: Any) -> Any:
    return _array(raw, kind, (1,), "C")[0].item()


def _encode(text: str, codec: str = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if codec not in ("latin1", "latin-1"):
        raise Refused(f"text in the codec {codec!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols 0 to 2 write the empty bytes."""
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "xrange"): range,
    ("__builtin__", "bytes"): _no_bytes,
}
for _module in ("numpy.core.", "numpy._core."):
    _KNOWN[_module + "multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[_module + "multiarray", "scalar"] = _scalar
    _KNOWN[_module + "numeric", "_frombuffer"] = _from_buffer
for _type in (list, dict, set, tuple, range):
    _KNOWN["builtins", _type.__name__] = _KNOWN["__builtin__", _type.__name__] = _type


class _Unpickler(pickle._Unpickler):
    """Finds the names in `_KNOWN` only.

    It is the unpickler written in Python: the one in C reserves memory for as many objects as a file
    claims to have.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle.

        Raises:
            Refused: the name is not known.
        """
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None
