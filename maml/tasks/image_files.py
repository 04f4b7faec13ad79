"""Image files in folders and archives: finding, checking and decoding them."""

import contextlib
import functools
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from maml.errors import UserError, one_line
from maml.machine import cores
from maml.tasks.decoding import map_in_processes

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
_MANY = 5_000  # images that are worth starting processes
_PIECE = 64  # images a process is given at a time
_WAITING = 4_096  # images that wait for a thread; each takes more than 1 KB


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
    return functools.partial(_open_file, path)


def _open_file(path: str) -> BinaryIO:
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("not a plain file")
    return open(path, "rb")


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
    """Opens and converts images, by all cores where that helps, with a progress bar on a terminal.

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
    work = functools.partial(_decoded, convert=convert, pixels=pixels)
    failed, done = [], 0
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc=label, total=len(files), unit="image", disable=None, leave=False))
        for answer in _by_cores(work, files, stack):
            rows[done : done + len(answer.rows)] = answer.rows
            failed += [(done + index, reason) for index, reason in answer.failed]
            done += len(answer.rows)
            bar.update(len(answer.rows))
    if failed:
        names = (f"{files[index].name} ({reason})" for index, reason in failed)
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
    return one_line(error)


def for_each(work: Callable[[int], None], number: int, label: str) -> None:
    """Calls work(0) to work(number - 1), in threads, with a progress bar on a terminal."""
    with contextlib.ExitStack() as stack:
        for _ in tqdm(_threads(work, range(number), stack), label, number, unit="image", disable=None, leave=False):
            pass


class _Decoded(NamedTuple):
    """Some images, decoded.

    rows: uint8 [images, pixels]; those that failed are zero.
    failed: (index, reason) of the unreadable ones.
    """

    rows: np.ndarray
    failed: list[tuple[int, str]]


def _decoded(files: list[ImageFile], convert: Callable[[Image.Image], np.ndarray], pixels: int) -> _Decoded:
    answer = _Decoded(np.zeros((len(files), pixels), np.uint8), [])
    for index, image_file in enumerate(files):
        try:
            with image_file.open() as file, opened(file) as image:
                answer.rows[index] = convert(image).reshape(-1)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            answer.failed.append((index, reason_of(error)))
    return answer


def _by_cores(
    work: Callable[[list[ImageFile]], _Decoded], files: list[ImageFile], stack: contextlib.ExitStack
) -> Iterator[_Decoded]:
    """work(piece) of all pieces of the files, in order.

    Decoding large images releases the interpreter's lock: 500 x 375 JPEGs take 2.7 ms in one thread, 1.3 in two. Small
    ones need processes: 84 x 84 JPEGs take 0.16 ms in one thread and 0.20 in two.
    """
    if _large(files[0]):
        return _threads(work, [[file] for file in files], stack)
    pieces = [files[start : start + _PIECE] for start in range(0, len(files), _PIECE)]
    if len(files) >= _MANY and _can_be_sent(files):
        return stack.enter_context(contextlib.closing(map_in_processes(work, pieces)))
    return map(work, pieces)


def _threads(work: Callable, items: Sequence, stack: contextlib.ExitStack) -> Iterator:
    pool = ThreadPoolExecutor(cores())
    stack.callback(pool.shutdown, cancel_futures=True)
    for start in range(0, len(items), _WAITING):
        yield from pool.map(work, items[start : start + _WAITING])


def _large(file: ImageFile) -> bool:
    """Whether images like this one are large."""
    with contextlib.suppress(Exception), file.open() as data, opened(data) as image:
        return image.width * image.height > _SMALL_IMAGE
    return False


def _can_be_sent(files: list[ImageFile]) -> bool:
    """Whether other processes can open them; a member of an archive that is open here they cannot."""
    return all(getattr(file.open, "func", None) is _open_file for file in files)
