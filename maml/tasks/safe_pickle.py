"""Reads pickles that hold NumPy arrays in plain containers, and nothing else.

An ordinary unpickler runs whatever code a file names. This one knows the few names that such
data needs, and rebuilds arrays itself from their raw bytes, because NumPy's own code for that
trusts what it is told about memory. Arrays are views of the memory-mapped file, so that pickles
may be larger than the memory.
"""

import collections
import math
import mmap
import pickle
import re
from typing import Any, ClassVar

import numpy as np

_NUMBERS_AND_TEXT = re.compile(r"[biuf][1248]|[SU]\d{1,4}")
_LONG = 1024  # bytes from which a piece of a pickle is a view and no copy


class Refused(Exception):
    """The pickle asks for something that arrays in plain containers do not need."""


def load(path: str) -> Any:
    """A file's object; arrays come as `Array`, long bytes as views. Reads what Python 2 wrote, too (its text as bytes).

    Raises:
        Refused: it names anything but arrays and containers.
        OSError: there is no such file.
        Exception: what `pickle` raises on damaged bytes.
    """
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return loads(content)


def loads(content: bytes | mmap.mmap) -> Any:
    """The same of a pickle's bytes."""
    return _Unpickler(_Pieces(content), encoding="bytes").load()


class _Pieces:
    """A pickle's bytes, read from the first to the last."""

    def __init__(self, content: bytes | mmap.mmap):
        self.content, self.view, self.position = content, memoryview(content), 0

    def read(self, count: int) -> Any:
        """The next `count` bytes, or what is left; as a memoryview if they are many."""
        piece = self.view[self.position : self.position + count]
        self.position += len(piece)
        return piece if count >= _LONG else bytes(piece)

    def readline(self) -> bytes:
        """The next line, or what is left."""
        end = self.content.find(b"\n", self.position) + 1 or len(self.view)
        return bytes(self.read(end - self.position))


class Array:
    """Stands for numpy.ndarray while a pickle is read.

    value: the array, once its state was read.
    """

    __slots__ = ("value",)

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
    if not isinstance(kind, _Kind) or not isinstance(raw, bytes | memoryview):
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


def _pass_over_frame(unpickler: Any) -> None:
    """A frame says how many of the next bytes to read at once, which would copy them."""
    unpickler.read(8)


class _Unpickler(pickle._Unpickler):
    """Finds the names in `_KNOWN` only.

    It is the unpickler written in Python: the one in C reserves memory for as many objects as a file
    claims to have.
    """

    dispatch: ClassVar = pickle._Unpickler.dispatch | {
        pickle.FRAME[0]: _pass_over_frame,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle.

        Raises:
            Refused: the name is not known.
        """
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None
