"""From what a person draws to what the network was trained on: Omniglot's characters, 28×28, ink bright."""

import numpy as np
from PIL import Image

from maml.errors import UserError

CANVAS = 105  # pixels of Omniglot's originals
LARGEST = 64  # of a character's longer side there, on average
STROKE = 5.0  # a line's width there
FAINT = 20  # how much ink of 255 makes a pixel ink, when a drawing is made smaller: thin lines stay whole
SIZE = 28


def as_character(picture: np.ndarray | Image.Image) -> np.ndarray:
    """A drawing as the network sees one: cropped to its ink, scaled, centered, its lines as thick as Omniglot's.

    Args:
        picture: of any size, dark on bright or on nothing (transparent).

    Returns:
        uint8 [28, 28], ink 255, paper 0.

    Raises:
        UserError: nothing is drawn.
    """
    ink = _ink(picture)
    box = ink.getbbox()
    if box is None:
        raise UserError("nothing is drawn")
    ink = ink.crop(box)
    thin = _line_of(ink, LARGEST)
    across = max(np.ptp(places) for places in np.nonzero(thin)) + STROKE  # less than it was, where lines were thick
    thin = _line_of(ink, min(CANVAS - 6, LARGEST * LARGEST / across))
    return np.asarray(Image.fromarray(_thick(thin)).resize((SIZE, SIZE), Image.Resampling.NEAREST))


def _line_of(ink: Image.Image, longest: float) -> np.ndarray:
    """The middle line of a drawing whose longer side is brought to `longest`, centered: bool [CANVAS, CANVAS]."""
    scale = longest / max(ink.size)
    size = [max(1, round(side * scale)) for side in ink.size]
    scaled = ink.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    whole = np.zeros([CANVAS, CANVAS], bool)
    left, top = ((CANVAS - side) // 2 for side in size)
    whole[top : top + size[1], left : left + size[0]] = middle_line(np.asarray(scaled) > FAINT)
    return whole


def _ink(picture: np.ndarray | Image.Image) -> Image.Image:
    """Ink as 255, paper as 0, of a picture in any mode; what is transparent is paper."""
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    gray = Image.alpha_composite(white, image).convert("L")
    inverted = np.asarray(gray, np.float32)
    if inverted.mean() < 128:  # bright on dark
        inverted = 255 - inverted
    return Image.fromarray(((255 - inverted) > 96).astype(np.uint8) * 255)


def middle_line(ink: np.ndarray) -> np.ndarray:
    """The one pixel wide skeleton of a drawing, bool [h, w] (Zhang & Suen 1984)."""
    image = np.pad(ink.astype(np.uint8), 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            around = [np.roll(image, shift, (0, 1)) for shift in
                      ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))]  # fmt: skip
            count = sum(around)
            rises = sum((a == 0) & (b == 1) for a, b in zip(around, around[1:] + around[:1], strict=True))
            up, right, down, left = around[0], around[2], around[4], around[6]
            corners = (up * right * down, right * down * left) if first else (up * right * left, up * down * left)
            gone = (image == 1) & (count >= 2) & (count <= 6) & (rises == 1) & (corners[0] == 0) & (corners[1] == 0)
            if gone.any():
                image[gone], changed = 0, True
    return image[1:-1, 1:-1].astype(bool)


def _thick(line: np.ndarray) -> np.ndarray:
    """Lines as wide as STROKE, uint8, where one pixel wide ones are."""
    reach = int(STROKE / 2)
    found = np.zeros_like(line)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= STROKE**2 / 4:
                found |= np.roll(line, (down, right), (0, 1))
    return found.astype(np.uint8) * 255
