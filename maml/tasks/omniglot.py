"""Downloads Omniglot and prepares it (`python -m maml.tasks.omniglot`).

The two archives of Lake, Salakhutdinov & Tenenbaum (Science 350, 2015) come to data/omniglot, are
checked against their published MD5 sums, and are read once, so that training starts at once. A
download that broke off goes on where it stopped when the command is run again.
"""

import argparse
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from typing import BinaryIO

from tqdm import tqdm

from maml.errors import UserError
from maml.tasks.images import DEFAULT_DIRS, load_split
from maml.tasks.omniglot_images import SPLIT

MIRROR = "https://github.com/brendenlake/omniglot/raw/master/python"
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}

_ATTEMPTS = 3
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 16


class _BrokenOff(Exception):
    """The connection failed or ended early; another attempt may go on."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=DEFAULT_DIRS["omniglot"], help="folder of the archives (%(default)s)")
    parser.add_argument("--mirror", default=MIRROR, help="address of the folder with both archives (%(default)s)")
    parser.add_argument("--no_checksum", action="store_true", help="accept archives that were packed anew")
    args = parser.parse_args(arguments)
    try:
        fetch(args.data_dir, args.mirror, not args.no_checksum)
        sizes = [len(_prepared(args.data_dir, split)) for split in SPLIT]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    parts = ", ".join(f"{size} {split}" for size, split in zip(sizes, SPLIT, strict=True))
    print(f"{args.data_dir}: ready, {parts} characters; train with --datasource=omniglot --data_dir={args.data_dir}")
    return 0


def _prepared(data_dir: str, split: str) -> tuple[str, ...]:
    """The characters of a split, which is read and kept in the cache."""
    return load_split("omniglot", data_dir, split, image_size=28, channels=1).names


def fetch(data_dir: str, mirror: str, checked: bool) -> None:
    """Downloads the archives that are not there yet.

    Args:
        data_dir: where they go.
        mirror: address of the folder that holds them.
        checked: whether their MD5 sums must be the published ones.

    Raises:
        UserError: the server, the disk or a sum does not play along.
    """
    if not mirror.startswith(("https://", "http://")):
        raise UserError(f"--mirror={mirror}: must begin with https:// or http://")
    try:
        os.makedirs(data_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"{data_dir} cannot be made ({error.strerror}); name another --data_dir") from error
    for name, expected in MD5.items():
        path = os.path.join(data_dir, name)
        if os.path.isfile(path):
            if checked and _md5(path) != expected:
                raise UserError(
                    f"{path} is not the official archive (MD5 {_md5(path)}, and {expected} is needed); delete it, or "
                    "give --no_checksum if it was packed anew"
                )
            continue
        download(f"{mirror.rstrip('/')}/{name}", path + ".part")
        found = _md5(path + ".part")
        if checked and found != expected:
            os.unlink(path + ".part")
            raise UserError(
                f"{mirror.rstrip('/')}/{name} has MD5 {found}, and {expected} is needed; the file was removed, "
                "run the command again or give --no_checksum for archives that were packed anew"
            )
        os.replace(path + ".part", path)


def download(url: str, path: str) -> None:
    """Loads `url` into a file, going on where the file ends.

    Raises:
        UserError: it could not be loaded; what was loaded stays.
    """
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            _attempt(url, path)
            return
        except _BrokenOff as error:
            reason = str(error)
    have = os.path.getsize(path) if os.path.isfile(path) else 0
    raise UserError(
        f"{url}: the download broke off after {have} bytes ({reason}); run the same command to continue, or name "
        "another --mirror"
    )


def _attempt(url: str, path: str) -> None:
    have = os.path.getsize(path) if os.path.isfile(path) else 0
    headers = {"User-Agent": "maml", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:
            goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status == 206 and not goes_on:
                os.unlink(path)  # another piece than the one asked for; begin anew
                raise _BrokenOff("the server sent another piece")
            _receive(response, path, have if goes_on else 0)
    except urllib.error.HTTPError as error:
        _refused(error, url, path, have)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenOff(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _refused(error: urllib.error.HTTPError, url: str, path: str, have: int) -> None:
    """Returns if the file is whole already: there is nothing beyond its end (status 416).

    Raises:
        UserError: the server does not have it.
        _BrokenOff: another attempt may help.
    """
    if error.code == 416 and have:
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return
        os.unlink(path)  # longer than the file it should be a part of
        raise _BrokenOff("what was loaded before does not fit")
    if error.code in (408, 429) or error.code >= 500:
        raise _BrokenOff(f"{error.code} {error.reason}")
    raise UserError(f"{url}: the server answered {error.code} {error.reason}; check the address or name a --mirror")


def _receive(response: http.client.HTTPResponse, path: str, have: int) -> None:
    """Writes the answer behind the first `have` bytes of the file.

    Raises:
        _BrokenOff: fewer bytes came than were announced.
        UserError: the file could not be written.
    """
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    received = have
    with _open(path, "ab" if have else "wb") as file:
        name = os.path.basename(path).removesuffix(".part")
        with tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                _append(file, chunk, path)
                received += len(chunk)
                bar.update(len(chunk))
    if total is not None and received < total:
        raise _BrokenOff(f"{total - received} bytes are missing")


def _open(path: str, mode: str) -> BinaryIO:
    try:
        return open(path, mode, buffering=0)  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another --data_dir") from error


def _append(file: BinaryIO, chunk: bytes, path: str) -> None:
    """Writes all of a chunk; a full disk takes a part of it first."""
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); make room and run the same command to continue"
        ) from error


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
