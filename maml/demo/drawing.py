"""From what a person draws to what the network was trained on: Omniglot's characters, 28×28, ink bright."""

import numpy as np
from PIL import Image, ImageFilter

from maml.errors import UserError

CANVAS = 105  # pixels of Omniglot's originals
LARGEST = 64  # of a character's longer side there, on average
STROKE = 5.0  # a line's width there
SIZE = 28


def as_character(picture: np.ndarray | Image.Image) -> np.ndarray:
    """A drawing as the network sees one: cropped to its ink, scaled, centred, its lines as thick as Omniglot's.

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
    scale = LARGEST / max(ink.size)
    size = [max(1, round(side * scale)) for side in ink.size]
    thin = _of_width(np.asarray(ink) > 0, STROKE / scale)  # before it is scaled: a thick line has no shape afterwards
    shrunk = thin.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    shrunk = shrunk.point(lambda value: 255 if value > 96 else 0)
    whole = Image.new("L", (CANVAS, CANVAS))
    whole.paste(shrunk, ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def _ink(picture: np.ndarray | Image.Image) -> Image.Image:
    """Ink as 255, paper as 0, of a picture in any mode; what is transparent is paper."""
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(white, image).convert("L")
    inverted = np.asarray(grey, np.float32)
    if inverted.mean() < 128:  # bright on dark
        inverted = 255 - inverted
    return Image.fromarray(((255 - inverted) > 96).astype(np.uint8) * 255)


def line_width(ink: np.ndarray) -> float:
    """The width of a drawing's lines in pixels: twice its area by the length of its outline."""
    padded = np.pad(ink, 1)
    edges = sum(np.count_nonzero(padded ^ np.roll(padded, 1, axis)) for axis in (0, 1))
    return 2.0 * np.count_nonzero(ink) / max(1.0, edges * np.pi / 4)  # an outline of steps is 4/π as long as it is


def _of_width(ink: np.ndarray, wanted: float) -> Image.Image:
    """The drawing with lines about as wide as wanted, by thinning or thickening them a pixel a side at a time."""
    margin = int(np.ceil(max(wanted, 1)))
    image = Image.fromarray(np.pad(ink, margin).astype(np.uint8) * 255)
    width = line_width(ink)
    while width < wanted - 1:
        image, width = image.filter(ImageFilter.MaxFilter(3)), width + 2
    while width > wanted + 1:
        thinner = image.filter(ImageFilter.MinFilter(3))
        if not np.asarray(thinner).any():
            break
        image, width = thinner, width - 2
    box = image.getbbox()
    assert box is not None
    return image.crop(box)
