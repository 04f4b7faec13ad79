"""Small image data sets for tests, written in a second or two."""

import functools
import io
import os
import zipfile

import numpy as np
from PIL import Image

OMNIGLOT_HALVES = {"images_background": (30, 964), "images_evaluation": (20, 659)}
DRAWINGS = 20
_VARIANTS = 4  # different drawings of a character; the 20 files repeat them


def write_class_folders(
    root,
    classes: dict[str, int],
    per_class: int,
    size: int = 84,
    channels: int = 3,
    seed: int = 0,
    suffix: str = ".png",
) -> None:
    """Writes `root/<split>/<class>/<image>`, classes easy to tell apart.

    A class has its own coarse pattern of colors; its images differ by noise.

    Args:
        root: the data folder.
        classes: number of classes by split, such as {"train": 5, "val": 5, "test": 5}.
        per_class: images a class.
        size: height and width in pixels.
        channels: 1 or 3.
        seed: of patterns and noise.
        suffix: ".png" or ".jpg".
    """
    rng = np.random.default_rng(seed)
    for split, number in classes.items():
        for index in range(number):
            folder = os.path.join(root, split, f"{split}_{index:02d}")
            os.makedirs(folder, exist_ok=True)
            pattern = rng.integers(0, 256, (4, 4, channels), np.uint8)
            for image in range(per_class):
                Image.fromarray(noisy(pattern, size, rng)).save(
                    os.path.join(folder, f"{image:03d}{suffix}"), compress_level=1, quality=90
                )


def noisy(pattern: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A coarse pattern enlarged to `size` with noise: uint8 [size, size] or [size, size, 3]."""
    rows = np.arange(size) * len(pattern) // size
    pixels = pattern[rows][:, rows] + rng.integers(-20, 21, (size, size, pattern.shape[-1]))
    return np.clip(pixels, 0, 255).astype(np.uint8).squeeze()


@functools.cache
def omniglot_files(half: str) -> tuple[tuple[str, bytes], ...]:
    """Names (`alphabet/character/drawing.png`) and 105 x 105 1-bit PNGs of one half of a made-up Omniglot."""
    alphabets, characters = OMNIGLOT_HALVES[half]
    rng = np.random.default_rng(alphabets)
    files = []
    for index in range(characters):
        name = f"{half[7:11].title()}_{index % alphabets:02d}/character{index // alphabets + 1:02d}"
        pattern = rng.random((7, 7)) < 0.7
        variants = [_one_bit(pattern ^ (rng.random((7, 7)) < 0.05)) for _ in range(_VARIANTS)]
        for drawing in range(DRAWINGS):
            files.append((f"{name}/{index:04d}_{drawing + 1:02d}.png", variants[drawing % _VARIANTS]))
    return tuple(files)


def _one_bit(pattern: np.ndarray) -> bytes:
    """A [7, 7] pattern of paper (True) and ink as a 105 x 105 1-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.kron(pattern, np.ones((15, 15), bool))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_omniglot_archives(folder) -> None:
    """Writes images_background.zip and images_evaluation.zip with 1623 made-up characters x 20."""
    os.makedirs(folder, exist_ok=True)
    for half in OMNIGLOT_HALVES:
        write_archive(os.path.join(folder, f"{half}.zip"), {f"{half}/{n}": data for n, data in omniglot_files(half)})


def write_archive(path, members: dict[str, bytes]) -> None:
    """Writes a zip archive, uncompressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def write_omniglot_folders(folder, merged: bool = False) -> None:
    """Writes the same characters as folders; `merged`: all alphabets directly in `folder`."""
    for half in OMNIGLOT_HALVES:
        first: dict[bytes, str] = {}  # equal drawings are one file with several names
        for name, data in omniglot_files(half):
            path = os.path.join(folder, name) if merged else os.path.join(folder, half, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if data in first:
                os.link(first[data], path)
                continue
            first[data] = path
            with open(path, "wb") as file:
                file.write(data)
