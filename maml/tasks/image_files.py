"""Image files in folders and archives: finding, checking and decoding them."""

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from maml.errors import UserError

# Pillow's formats by suffix. An image is what one of these suffixes says and one of these formats is.
FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **{".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".avif": "AVIF"},
}
MODES = {1: "L", 3: "RGB"}  # Pillow's name for so many channels

HIDDEN = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "picasa.ini")  # what systems leave everywhere

_MOST_PIXELS = 50_000_000  # a few bytes can claim billions of pixels
_SMALL_IMAGE = 200 * 200


class ImageFile(NamedTuple):
    """One image that can be opened, in a folder or in an archive.

    name: for messages.
    open: gives its bytes.
    """

    name: str
    open: Callable[[], BinaryIO]


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names and how many more there are, on one line."""
    names = [name if name.isprintable() else repr(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_member(archive: str, name: str) -> None:
    """Raises UserError if an archive's member would lie outside the folder it is unpacked to."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise UserError(f"{archive}: its member {name!r} would leave its folder; the archive is refused")


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in FORMATS


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> BinaryIO:
    """A zip's member in memory; one of more than `most` bytes, unpacked, is a ValueError."""
    if info.file_size > most:
        raise ValueError(f"{info.file_size} bytes")
    return io.BytesIO(archive.read(info))


def hidden(name: str) -> bool:
    """Whether a file or folder is one that systems leave everywhere."""
    return name.startswith(".") or name.lower() in HIDDEN


def visible(folder: str) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """The folders and the files in a folder, each sorted by name, without the hidden ones."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); mend its permissions") from error
    folders = [entry for entry in found if entry.is_dir()]
    return folders, [entry for entry in found if not entry.is_dir()]


def folder_files(folder: str, depth: int, above: str = "") -> Iterator[tuple[str, str]]:
    """(name relative to the first folder, path) of everything `depth` folders deep.

    Folders that lie deeper count as files: they have no business there.
    """
    folders, files = visible(folder)
    for entry in files if depth else files + folders:
        yield above + entry.name, entry.path
    for entry in folders if depth else []:
        yield from folder_files(entry.path, depth - 1, f"{above}{entry.name}/")


def opener(path: str) -> Callable[[], BinaryIO]:
    """What opens a file; a pipe or a device, at which reading could wait for ever, is a ValueError."""

    def open_file() -> BinaryIO:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("not a plain file")
        return open(path, "rb")

    return open_file


def upright_on_white(image: Image.Image) -> Image.Image:
    """An image as a person sees it: turned by its EXIF orientation, what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """An image of the wanted size, uint8 [size, size, 3] or [size, size]; LANCZOS where it has another size."""
    image = upright_on_white(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose black and white nobody knows")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert(MODES[channels])
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def decode(
    files: list[ImageFile],
    convert: Callable[[Image.Image], np.ndarray],
    pixels: int,
    label: str,
    way_out: str,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Opens and converts images, with a progress bar on a terminal.

    Args:
        files: the images.
        convert: makes `pixels` bytes of an opened image.
        pixels: bytes a row.
        label: what is read, for the bar and the message.
        way_out: what to do about unreadable images.
        rows: where to put them; None: in memory.

    Returns:
        uint8 [files, pixels].

    Raises:
        UserError: some images are unreadable.
    """
    rows = np.empty((len(files), pixels), np.uint8) if rows is None else rows
    failed: list[tuple[int, str]] = []

    def read(index: int) -> None:
        try:
            with files[index].open() as file, opened(file) as image:
                rows[index] = convert(image).reshape(-1)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            failed.append((index, reason_of(error)))

    for_each(read, len(files), label, _threads_help(files[0]))
    if failed:
        names = (f"{files[index].name} ({reason})" for index, reason in sorted(failed))
        raise UserError(f"{label}: {len(failed)} of {len(files)} images are unreadable: {listed(names)}; {way_out}")
    return rows


def opened(file: BinaryIO) -> Image.Image:
    """An image whose pixels are not decoded yet; of several pictures in a file, the first.

    Raises:
        ValueError: it claims a size that no photograph has.
        Exception: what Pillow raises on damaged bytes.
    """
    image = Image.open(file, formats=tuple(set(FORMATS.values())))
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    return image


def reason_of(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(sorted(set(FORMATS.values())))}"
    return " ".join(str(error).split()) or type(error).__name__


def for_each(work: Callable[[int], None], number: int, label: str, parallel: bool) -> None:
    """Calls work(0) to work(number - 1), in threads if `parallel`, with a progress bar on a terminal."""
    with contextlib.ExitStack() as stack:
        done: Iterator[None] = map(work, range(number))
        if parallel:
            pool = ThreadPoolExecutor(os.cpu_count())
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(work, range(number))
        for _ in tqdm(done, label, number, unit="image", disable=None, leave=False):
            pass


def _threads_help(file: ImageFile) -> bool:
    """Whether images like this one are large.

    Decoding releases the interpreter's lock. For small images that is not worth its price:
    84 x 84 JPEGs take 0.16 ms in one thread and 0.20 ms in two; 500 x 375 ones 2.7 and 1.3 ms.
    """
    with contextlib.suppress(Exception), file.open() as data, opened(data) as image:
        return image.width * image.height > _SMALL_IMAGE
    return False
