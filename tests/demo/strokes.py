"""Characters as strokes of a mouse: the middle lines of images, drawn again with jitter.

  python -m tests.demo.strokes --data_dir=DIR      how often the demo's network takes such drawings for the right class

A task is five characters of Omniglot's test split, each drawn once after one person, and then again after another one.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw

from maml.demo.classify import probabilities
from maml.demo.drawing import as_character, middle_line
from maml.demo.pads import BOX, BRUSH
from maml.demo.page import CHARACTERS, PRETRAINED, STEPS
from maml.learner import Learner, load
from maml.tasks.images import load_split

Point = tuple[float, float]


def strokes(ink: np.ndarray) -> list[list[Point]]:
    """Walks along the middle line: lists of (x, y) in pixels of the image."""
    left = {(int(x), int(y)) for y, x in zip(*np.nonzero(middle_line(ink)), strict=True)}
    found = []

    def beside(point):
        x, y = point
        near = [(x + dx, y + dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))]
        return [each for each in near if each in left]

    while left:
        point = min(left, key=lambda each: (len(beside(each)), each))  # an end, if there is one
        line = [point]
        left.remove(point)
        while around := beside(point):
            point = around[0]
            left.remove(point)
            line.append(point)
        found.append([(float(x), float(y)) for x, y in line])
    return found


def by_hand(lines: list[list[Point]], rng: np.random.Generator, side: int) -> list[list[Point]]:
    """The strokes in a box of the page: a little larger or smaller, elsewhere, and shaky."""
    scale = BOX / side * rng.uniform(0.7, 1.0)
    shift = rng.uniform(0, BOX - scale * side, 2)
    drawn = []
    for line in lines:
        points = np.array(line[::3] + line[-1:]) * scale + shift
        points += rng.normal(0, 1.0, points.shape)
        drawn.append([(float(x), float(y)) for x, y in np.clip(points, 2, BOX - 3)])
    return drawn


def painted(lines: list[list[Point]]) -> Image.Image:
    """What the page's brush makes of strokes: black on nothing."""
    image = Image.new("RGBA", (BOX, BOX))
    draw, half = ImageDraw.Draw(image), BRUSH / 2
    for line in lines:
        draw.line(line, "black", BRUSH, joint="curve")
        for x, y in (line[0], line[-1]):
            draw.ellipse((x - half, y - half, x + half, y + half), "black")
    return image


def characters(data_dir: str) -> list[np.ndarray]:
    """The drawings of each test class as they were made: bool [drawers, 105, 105]."""
    split = load_split("omniglot", data_dir, "test", image_size=105, channels=1, resize="nearest", conventions="maml")
    images = np.asarray(split.images).reshape(-1, 105, 105) > 127
    return np.split(images, np.cumsum(split.counts)[:-1])


def accuracy(learner: Learner, classes: list[np.ndarray], tasks: int, seed: int = 0) -> float:
    """How many queries of so many 5-way tasks, one drawing a class, are taken for what they are."""
    rng, right = np.random.default_rng(seed), 0
    for _ in range(tasks):
        chosen = rng.choice(len(classes), 5, replace=False)
        drawn = []
        for number in chosen:
            pair = rng.choice(len(classes[number]), 2, replace=False)
            ink = [classes[number][i] for i in pair]
            drawn.append([as_character(painted(by_hand(strokes(each), rng, len(each)))) for each in ink])
        support = np.stack([first for first, _ in drawn])[..., None]
        query = int(rng.integers(5))
        found = probabilities(learner, support, range(5), drawn[query][1][..., None], STEPS)
        right += int(found[-1].argmax() == query)
    return right / tasks


def main() -> None:
    """Prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where Omniglot is")
    parser.add_argument("--tasks", type=int, default=200)
    args = parser.parse_args()
    found = accuracy(load(PRETRAINED / CHARACTERS, bn_mode="support"), characters(args.data_dir), args.tasks)
    print(f"{100 * found:.1f} % of {args.tasks} queries, 5-way, one drawing a class (chance: 20 %)")


if __name__ == "__main__":
    main()
