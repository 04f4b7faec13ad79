"""Writing prepared images, so that an interrupted preparation goes on where it stopped."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

from maml.errors import UserError
from maml.tasks.class_folders import SPLITS
from maml.tasks.image_files import MODES, ImageFile, fit, for_each, listed, opened, reason_of, visible
from maml.tasks.prepare.pictures import Found, Picture

MARK = ".prepared"


def write_all(found: Found, output: str, size: int, channels: int, quality: int) -> None:
    """Writes all pictures that are not there yet.

    Raises:
        UserError: the output holds other images or cannot be written, or images are unreadable.
    """
    _claim(output, found, f"{size} {channels} {quality}")
    for folder in {os.path.dirname(picture.target) for picture in found.pictures}:
        os.makedirs(os.path.join(output, folder), exist_ok=True)
    left = [picture for picture in found.pictures if not _complete(os.path.join(output, picture.target))]
    process(left, size, channels, quality, lambda target, data: _write(os.path.join(output, target), data))


def process(
    pictures: list[Picture], size: int, channels: int, quality: int, keep: Callable[[str, bytes], None]
) -> None:
    """Reads and resizes pictures, and gives each (target, bytes) to `keep`.

    Raises:
        UserError: images are unreadable; all of them are named first.
    """
    unreadable: list[str] = []

    def work(index: int) -> None:
        target, source = pictures[index]
        try:
            data = encoded(source, target, size, channels, quality)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            name = source.name if isinstance(source, ImageFile) else target
            unreadable.append(f"{name} ({reason_of(error)})")
        else:
            keep(target, data)

    for_each(work, len(pictures), "images")
    if unreadable:
        for line in sorted(unreadable):
            print(line, file=sys.stderr)
        raise UserError(
            f"{len(unreadable)} of {len(pictures)} images are unreadable (named above); "
            "replace them and run the same command again"
        )


def encoded(source: ImageFile | np.ndarray, target: str, size: int, channels: int, quality: int) -> bytes:
    """The bytes of the prepared image; those of the source where nothing has to change."""
    if isinstance(source, ImageFile):
        with source.open() as file:
            data = file.read()
        with opened(io.BytesIO(data)) as image:
            image.load()
            if image.size == (size, size) and image.mode == MODES[channels] and image.format in ("JPEG", "PNG"):
                return data
            pixels = fit(image, size, channels)
    else:
        pixels = source
    buffer = io.BytesIO()
    kind = "PNG" if target.lower().endswith(".png") else "JPEG"
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _claim(output: str, found: Found, settings: str) -> None:
    """Marks the output as prepared from this source with these settings.

    Raises:
        UserError: it holds images of something else, which would be mixed with these.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for picture in found.pictures:
        digest.update(os.fsencode(picture.target) + b"\0")
    line = f"{found.form} {settings} {digest.hexdigest()}\n"
    mark = os.path.join(output, MARK)
    try:
        os.makedirs(output, exist_ok=True)
        if os.path.isfile(mark):
            with open(mark, encoding="utf-8") as file:
                if file.read() == line:
                    return
        present = [split for split in SPLITS if os.path.isdir(os.path.join(output, split))]
        if any(any(visible(os.path.join(output, split))) for split in present):
            raise UserError(
                f"{output} holds {listed(present)}, which were prepared otherwise; remove them or name another --output"
            )
        _write(mark, line.encode())
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another --output") from error


def prepared_as(folder: str) -> tuple[int, int] | None:
    """Size and channels of the images that were prepared in a folder; None if none were."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open(os.path.join(folder, MARK), encoding="utf-8") as file,
    ):
        size, channels = map(int, file.read().split()[-4:-2])
        return size, channels
    return None


def _complete(path: str) -> bool:
    """Whether a picture was written; files appear whole."""
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


def _write(path: str, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise UserError(f"{path} could not be written ({error.strerror}); run the same command to continue") from error
