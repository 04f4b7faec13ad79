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
from typing import Any

import numpy as np

_MAGIC = b"MAMLIMG2"  # the digit rises whenever the layout or the preparation of images changes
_START = struct.Struct("<8sQI")  # magic, length of the JSON header, its CRC-32
_ALIGNMENT = 64
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
    header = json.dumps({"key": key, "shape": list(images.shape), "facts": facts}).encode()
    start = _START.pack(_MAGIC, len(header), zlib.crc32(header)) + header
    start = start.ljust(_aligned(len(start)), b"\0")
    for path in places:
        if not _writable(os.path.dirname(path)):
            continue
        try:
            _write(path, start, images)
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            print(f"warning: {path} could not be written ({reason}); going on without it", file=sys.stderr)
            return ""
        return path
    return ""


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


def _write(path: str, start: bytes, images: np.ndarray) -> None:
    """Writes to a temporary file beside `path`, then moves it there in one step."""
    _remove_abandoned(path)
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(start)
            file.write(np.ascontiguousarray(images).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_abandoned(path: str) -> None:
    """Deletes what killed processes left of their attempts to write `path`."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(name + ".") and entry.name.endswith(".tmp")):
                continue
            if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                os.unlink(entry.path)
