"""Writing files so that a reader finds the old one or the new one, whole, and never a part."""

import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from maml.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    Raises:
        UserError: it could not be written; the old file, if there is one, stays.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free some space or mend its folder"
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with open(path, "r+b") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, which the kernel frees when the process ends, however it ends.

    The file stays. Its text, `host process`, is for the one who is refused.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            host, _, process = file.read().partition(" ")
            raise UserError(
                f"{path}: process {process or 'unknown'} on {host or 'an unknown host'} trains in this folder; "
                "wait for it, stop it, or choose another --logdir"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: cannot be locked ({error.strerror}); choose another --logdir") from error
        file.truncate(0)
        file.write(f"{platform.node()} {os.getpid()}")
        file.flush()
        yield


def _lock(file: TextIO) -> None:
    """Locks an open file for this process.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # behind the text, which stays readable
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove or restore it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}, expected a JSON object; remove or restore it")
    return value


def make_folder(path: Path, flag: str = "--logdir") -> None:
    """Creates a folder and its parents; `flag` is what named it.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".probe", dir=path)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another {flag}") from error
