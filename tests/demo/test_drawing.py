"""Drawings become what the network was trained on, however large, thick, inverted or placed they are."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maml.demo.drawing import CANVAS, LARGEST, SIZE, STROKE, as_character, middle_line
from maml.demo.pads import START, character_of
from maml.errors import UserError
from tests.demo.strokes import painted, strokes


def cross(side=220, width=9, place=(60, 50), arm=100, mode="RGBA") -> Image.Image:
    image = Image.new(mode, (side, side), (0, 0, 0, 0) if mode == "RGBA" else "white")
    draw, (x, y) = ImageDraw.Draw(image), place
    draw.line((x, y, x + arm, y + arm), "black", width)
    draw.line((x + arm, y, x, y + arm), "black", width)
    return image


@pytest.mark.parametrize("picture", [
    cross(), cross(mode="RGB"), cross(width=25), cross(width=4), cross(place=(5, 110)), cross(arm=45, width=5),
    cross(side=800, width=30, arm=500), Image.eval(cross(mode="RGB"), lambda value: 255 - value),
])  # fmt: skip
def test_the_same_shape_becomes_nearly_the_same_picture(picture):
    expected, found = as_character(cross()), as_character(np.asarray(picture))
    assert found.shape == (SIZE, SIZE) and found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    ink = (found > 0).sum()
    assert 0.5 < ink / (expected > 0).sum() < 2
    rows, columns = np.nonzero(found)
    assert abs(rows.mean() - 13.5) < 1.5 and abs(columns.mean() - 13.5) < 1.5, "centered"
    assert max(np.ptp(rows), np.ptp(columns)) == pytest.approx(LARGEST / CANVAS * SIZE, abs=3)


@pytest.mark.parametrize(
    ("side", "width"), [(60, 1), (60, 3), (100, 5), (220, 1), (220, 9), (220, 20), (700, 1), (700, 20)]
)
def test_no_line_is_lost_however_thin(side, width):
    image = Image.new("RGB", (side, side), "white")
    low, high = 0.2 * side, 0.8 * side
    ImageDraw.Draw(image).rectangle((low, low, high, high), outline="black", width=width)
    found = as_character(image) > 0
    for line in (found.any(0), found.any(1)):
        assert line.sum() == np.ptp(np.nonzero(line)[0]) + 1
    rows, columns = np.nonzero(found)
    inside = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert all(edge[1:-1].all() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert not inside[4:-4, 4:-4].any()


def test_an_empty_box_is_said():
    for nothing in (Image.new("RGBA", (50, 50)), Image.new("RGB", (50, 50), "white")):
        with pytest.raises(UserError, match="nothing is drawn"):
            as_character(nothing)


def sent(image: Image.Image, kind="PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return START + base64.b64encode(file.getvalue()).decode()


def test_what_a_box_sends_is_decoded_and_nothing_else_is():
    np.testing.assert_array_equal(character_of(sent(cross())), as_character(cross()))
    nothing = [
        None,
        "",
        "x",
        START,
        START + "!",
        START + "AAAA",
        sent(cross())[:200],
        sent(Image.new("RGBA", (220, 220))),
    ]
    for text in [*nothing, sent(cross(side=221)), sent(cross(mode="RGB"), "BMP"), sent(cross()) + "A" * 300_000]:
        assert character_of(text) is None


def test_a_dot_is_drawn():
    image = Image.new("RGBA", (220, 220))
    ImageDraw.Draw(image).ellipse((100, 100, 110, 110), "black")
    assert as_character(image).any()


def test_the_middle_line_of_a_drawing_is_walked_once():
    ink = as_character(cross()) > 0
    thin = middle_line(ink)
    assert 0 < thin.sum() <= ink.sum() and not (thin & ~ink).any()
    assert sum(map(len, strokes(ink))) == thin.sum()
    assert as_character(painted([[(50.0, 50.0), (150.0, 150.0)]])).any()
    assert STROKE < CANVAS
