"""Prepared images kept on disk, so that a data set is decoded and resized once.

A cache file is one header and the pixels behind it, memory-mapped when it is read. Its name
holds the settings and its header a key of the source files: a changed source gives another key,
and the file is replaced. Files appear whole or not at all, whoever is killed or races.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC = b"MAMLIMG2"  # the digit rises whenever the layout or the preparation of images changes
_START = struct.Struct("<8sQI")  # magic, length of the JSON header, its CRC-32
_ALIGNMENT = 64
_SHORT_FACTS = 200  # bytes of a header left for what is known in the end: the key, and a hash of the pixels
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed


def paths(data_dir: str, name: str) -> list[str]:
    """Where the cache file `name` of a data folder may stand, the preferred place first.

    `<data_dir>/.cache`, then `$MAML_CACHE_DIR` or `~/.cache/maml`, in which each data folder has
    a folder of its own.
    """
    places = [os.path.join(os.path.abspath(data_dir), ".cache")]
    shared = os.environ.get("MAML_CACHE_DIR") or os.path.expanduser("~/.cache/maml")
    if not shared.startswith("~"):
        owner = hashlib.blake2b(os.fsencode(os.path.realpath(data_dir)), digest_size=8).hexdigest()
        places.append(os.path.join(os.path.abspath(shared), owner))
    return [os.path.join(place, name) for place in places]


def load(path: str, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The pixels, uint8 [rows, columns] and memory-mapped, and the facts stored with them.

    None if there is no such file, if it is damaged, or if it was made from other sources.
    """
    try:
        with open(path, "rb") as file:
            magic, length, checksum = _START.unpack(file.read(_START.size))
            size = os.fstat(file.fileno()).st_size
            if magic != _MAGIC or length > size:
                return None
            header = file.read(length)
            if zlib.crc32(header) != checksum:
                return None
            values = json.loads(header)
            rows, columns = values["shape"]
            offset = _aligned(_START.size + length)
            if values["key"] != key or size != offset + rows * columns:
                return None
            # Copy on write, although nobody can write: TensorFlow takes no memory that is read-only.
            images = np.memmap(file, np.uint8, "c", offset, (rows, columns))
            images.flags.writeable = False
            return images, values["facts"]
    except (OSError, struct.error, ValueError, KeyError, TypeError):
        return None


class Room(NamedTuple):
    """Room on the disk for the pixels of a cache file.

    images: uint8 [rows, columns], memory-mapped: to be filled.
    keep: `keep(key, facts)` makes the file of it; returns its path, or "" if that fails, which one line says.
    """

    images: np.ndarray
    keep: Callable[[str, dict[str, Any]], str]


@contextlib.contextmanager
def room(places: list[str], shape: tuple[int, int], known: dict[str, Any]) -> Iterator[Room | None]:
    """Room for pixels, of which there may be more than memory, at the first of `places` that can be written and has it.

    None where there is no such place. What is not kept is gone behind the block.

    Args:
        places: paths, see `paths`.
        shape: of the pixels.
        known: of the facts, all but short ones.
    """
    length = len(_header("", shape, known)) + _SHORT_FACTS
    offset = _aligned(_START.size + length)
    with contextlib.ExitStack() as stack:
        for path in places:
            if not _writable(os.path.dirname(path)):
                continue
            temporary, file = stack.enter_context(_temporary(path))
            if _reserved(file, offset + shape[0] * shape[1]):
                break
        else:
            yield None
            return
        images = np.memmap(file, np.uint8, "r+", offset, shape)

        def keep(key: str, facts: dict[str, Any]) -> str:
            header = _header(key, shape, facts).ljust(length)
            try:
                images.flush()
                file.seek(0)
                file.write(_START.pack(_MAGIC, length, zlib.crc32(header)) + header)
                _moved(file, temporary, path)
            except OSError as error:
                _warn(path, error)
                return ""
            return path

        yield Room(images, keep)


def store(places: list[str], key: str, images: np.ndarray, facts: dict[str, Any]) -> str:
    """Writes a cache file at the first of `places` whose folder can be written.

    Nothing is raised when that fails (no writable folder, a full disk): the cache only saves
    time. A failed write leaves nothing behind and prints one line.

    Args:
        places: paths, see `paths`.
        key: what `load` must be given to find it again.
        images: uint8 [rows, columns].
        facts: what else to keep, as JSON knows it.

    Returns:
        The path that was written, or "".
    """
    header = _header(key, images.shape, facts)
    start = _START.pack(_MAGIC, len(header), zlib.crc32(header)) + header
    start = start.ljust(_aligned(len(start)), b"\0")
    for path in places:
        if not _writable(os.path.dirname(path)):
            continue
        try:
            with _temporary(path) as (temporary, file):
                file.write(start)
                file.write(np.ascontiguousarray(images).data)
                _moved(file, temporary, path)
        except OSError as error:
            _warn(path, error)
            return ""
        return path
    return ""


def _reserved(file: BinaryIO, size: int) -> bool:
    """Whether the disk has room for a file of this size: a mapped file that finds none ends the process."""
    if not hasattr(os, "posix_fallocate"):  # Windows, which would not move a mapped file either, and macOS
        return False
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        file.truncate(0)
        return False
    return True


def _header(key: str, shape: tuple[int, ...], facts: dict[str, Any]) -> bytes:
    return json.dumps({"key": key, "shape": list(shape), "facts": facts}).encode()


def _warn(path: str, error: OSError) -> None:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    print(f"warning: {path} could not be written ({reason}); going on without it", file=sys.stderr)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _writable(folder: str) -> bool:
    """Whether `folder` can be written; it is made if it is missing.

    A folder without any write permission is left alone even where the user is root, who could
    write everywhere.
    """
    existing = folder
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    if not os.stat(existing).st_mode & 0o222 or not os.access(existing, os.W_OK | os.X_OK):
        return False
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[tuple[str, BinaryIO]]:
    """A file beside `path`, and its name; behind the block it is gone, unless it was moved."""
    _remove_abandoned(path)
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "x+b") as file:
            yield temporary, file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _moved(file: BinaryIO, temporary: str, path: str) -> None:
    """Brings a file to the disk and moves it to its place, in one step."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove_abandoned(path: str) -> None:
    """Deletes what killed processes left of their attempts to write `path`."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(name + ".") and entry.name.endswith(".tmp")):
                continue
            if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                os.unlink(entry.path)
