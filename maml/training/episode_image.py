"""An episode as one picture: the support set, below it the query set with what was predicted."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maml.data_generator import Episodes

# What bounds the picture's size, whatever the episode: columns are classes, rows are examples.
MOST_CLASSES = 20
MOST_SUPPORT_ROWS = 3
MOST_QUERY_ROWS = 4
SIDE = (56, 84)  # pixels of an image: small ones are enlarged, large ones reduced

GAP, CAPTION, TITLE, FONT_SIZE = 4, 16, 22, 12
PAPER, INK = (255, 255, 255), (0, 0, 0)
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # blue and vermilion: told apart by every kind of color vision


class Tile(NamedTuple):
    """One image of a picture.

    image: float [height, width, channels] in [0, 1].
    caption: below it.
    color: of its frame and caption.
    """

    image: np.ndarray
    caption: str
    color: tuple[int, int, int]


def episode_rows(task: Episodes, outputs: np.ndarray, channels: int) -> tuple[list[list[Tile]], list[list[Tile]]]:
    """The tiles of one task, a column a class: rows of the support set, rows of the query set.

    A support image's caption is its class; a query image's is its class and the predicted one.

    Args:
        task: of images.
        outputs: of its query set, [N·Q, N].
        channels: of an image.
    """
    inputa, labela, inputb, labelb = (np.asarray(tensor) for tensor in task)
    size = round((inputa.shape[1] / channels) ** 0.5)
    support, query = (inputs.reshape(-1, size, size, channels) for inputs in (inputa, inputb))
    shown, truths = labela.argmax(1), labelb.argmax(1)
    tiles_a = [Tile(image, str(label), INK) for image, label in zip(support, shown, strict=True)]
    tiles_b = [
        Tile(image, f"{truth} as {said}", RIGHT if truth == said else WRONG)
        for image, truth, said in zip(query, truths, np.asarray(outputs).argmax(1), strict=True)
    ]
    return _columns(tiles_a, shown, MOST_SUPPORT_ROWS), _columns(tiles_b, truths, MOST_QUERY_ROWS)


def _columns(tiles: list[Tile], labels: np.ndarray, rows: int) -> list[list[Tile]]:
    """The first `rows` tiles of every class, one row after another, classes in order."""
    of_class = [[tiles[index] for index in np.flatnonzero(labels == label)[:rows]] for label in np.unique(labels)]
    return [list(row) for row in zip(*of_class[:MOST_CLASSES], strict=True)]


def draw_episode(support: list[list[Tile]], query: list[list[Tile]]) -> np.ndarray:
    """The picture, uint8 [height, width, 3]: support rows above query rows."""
    side = int(np.clip(support[0][0].image.shape[0], *SIDE))
    sections = [("support: class", support), ("query: class as predicted (orange: wrong)", query)]
    width = max(GAP + len(support[0]) * (side + GAP), 280)
    height = sum(TITLE + len(rows) * (side + CAPTION + GAP) for _, rows in sections)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    top = 0
    for title, rows in sections:
        pen.text((GAP, top + TITLE / 2), title, INK, font, "lm")
        top += TITLE
        for row in rows:
            for column, tile in enumerate(row):
                left = GAP + column * (side + GAP)
                canvas.paste(_picture(tile.image, side), (left, top))
                pen.rectangle((left - 1, top - 1, left + side, top + side), outline=tile.color, width=2)
                pen.text((left + side / 2, top + side + CAPTION / 2), tile.caption, tile.color, font, "mm")
            top += side + CAPTION + GAP
    return np.asarray(canvas)


def _picture(image: np.ndarray, side: int) -> Image.Image:
    """A float image in [0, 1] as `side` × `side` RGB pixels."""
    pixels = Image.fromarray(np.round(255 * image).astype(np.uint8).squeeze())
    enlarged = side >= image.shape[0]
    return pixels.convert("RGB").resize((side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)
