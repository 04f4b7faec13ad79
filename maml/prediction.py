"""Predictions for a folder of images, from a folder of support classes; measured, where the images have classes."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maml.errors import UserError
from maml.files import replacing
from maml.learner import Learner
from maml.tasks.class_folders import images_in, read_classes
from maml.tasks.image_files import is_image, listed, visible


class Predictions(NamedTuple):
    """What was predicted for Q images of N classes.

    files: their names, sorted; with their class folder, where they lie in one.
    classes: the support folder's class folders, sorted.
    probabilities: [Q, N].
    support: number of support images.
    truth: the class of each image, where the query folder has class folders; otherwise empty.
    notes: what was passed over.
    """

    files: list[str]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    support: int
    truth: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, float]]:
        """(file, its most probable class, that probability) of each image."""
        best = self.probabilities.argmax(1)
        return [
            (name, self.classes[column], float(row[column]))
            for name, column, row in zip(self.files, best, self.probabilities, strict=True)
        ]

    def confusion(self) -> np.ndarray:
        """How many images of each class (row) were predicted as each class (column): int64 [N, N].

        Raises:
            UserError: the images' classes are not known.
        """
        if not self.truth:
            raise UserError("the classes of these images are not known: put them into class folders")
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        rows = [self.classes.index(name) for name in self.truth]
        np.add.at(counts, (rows, self.probabilities.argmax(1)), 1)
        return counts

    def report(self) -> str:
        """Accuracy, each class's accuracy, and the confusion matrix, as a table."""
        counts = self.confusion()
        width = max(map(len, self.classes))
        cells = max(5, *(len(str(count)) for count in counts.ravel()))
        lines = [f"accuracy {100 * counts.trace() / counts.sum():.1f} % of {counts.sum()} images"]
        lines.append(f"{'true class':<{width}} {'accuracy':>9}   predicted as, in the order of the rows")
        for index, (name, row) in enumerate(zip(self.classes, counts, strict=True)):
            share = f"{100 * row[index] / row.sum():.1f} %" if row.sum() else "-"
            lines.append(f"{name:<{width}} {share:>9}   " + " ".join(f"{count:>{cells}}" for count in row))
        return "\n".join(lines)


def predict_folder(learner: Learner, support: str, query: str) -> Predictions:
    """Adapts to the class folders in `support` and classifies the images in `query`.

    Args:
        query: a folder of images, or of class folders named like those of `support`.

    Raises:
        UserError: a folder is missing, holds something else, or has another number of classes.
    """
    if not learner.config.classification:
        raise UserError("--predict is for images, and this run is of sinusoids; adapt it in Python with maml.load")
    support, query = (os.path.expanduser(folder) for folder in (support, query))
    for flag, folder in (("support", support), ("query", query)):
        if not os.path.isdir(folder):
            raise UserError(f"--{flag}={folder}: no such folder; name a folder of images")
    classes = read_classes(support)
    if learner.ways not in (None, len(classes.paths)):
        raise UserError(
            f"--support={support} has {len(classes.paths)} class folders, and this run learned "
            f"{learner.ways}-way tasks: give exactly {learner.ways}"
        )
    labels = [name for name, paths in classes.paths.items() for _ in paths]
    paths, names, truth, notes = _queries(query, classes.paths)
    images = learner.read_images([path for paths in classes.paths.values() for path in paths])
    adapted = learner.adapt(images, labels)
    probabilities = adapted.predict_proba(learner.read_images(paths))
    notes = classes.notes(support) + notes
    return Predictions(names, adapted.classes, probabilities, len(labels), truth, tuple(notes))


def _queries(query: str, classes: dict[str, list[str]]) -> tuple[list[str], list[str], tuple[str, ...], list[str]]:
    """Paths, names, true classes (if in class folders) and notes of the images to classify."""
    if not visible(query)[0] or any(is_image(entry.name) for entry in visible(query)[1]):
        paths, others = images_in(query)
        notes = [f"{query}: {len(others)} are no images: {listed(others)}"] if others else []
        return paths, [Path(path).name for path in paths], (), notes
    found = read_classes(query)
    strange = sorted(found.paths.keys() - classes.keys())
    if strange:
        raise UserError(
            f"--query={query} has the class folders {listed(strange)}, which --support lacks (it has "
            f"{listed(classes)}): name them alike, or put the images beside each other to have them classified only"
        )
    paths = [path for of_class in found.paths.values() for path in of_class]
    truth = tuple(name for name, of_class in found.paths.items() for _ in of_class)
    names = [f"{name}/{Path(path).name}" for name, path in zip(truth, paths, strict=True)]
    return paths, names, truth, found.notes(query)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes a .csv: file, class and its probability, the true class where it is known, every class's probability.

    Raises:
        UserError: it cannot be written.
    """
    truth = [[name] for name in predictions.truth] or [[]] * len(predictions.files)
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        known = ["true class"] if predictions.truth else []
        writer.writerow(["file", "class", "probability", *known, *(f"p({name})" for name in predictions.classes)])
        for row, true, every in zip(predictions.rows(), truth, predictions.probabilities, strict=True):
            writer.writerow([*row, *true, *map(float, every)])


def write_confusion(path: Path, predictions: Predictions) -> None:
    """Draws the confusion matrix as a .png, rows true classes, columns predicted ones.

    Raises:
        UserError: it cannot be written, or the images' classes are not known.
    """
    counts = predictions.confusion()
    font, cell = ImageFont.load_default(14), 48
    names = [name.encode("latin-1", "backslashreplace").decode("latin-1") for name in predictions.classes]
    margin = 20 + int(max(font.getlength(name) for name in names))
    image = Image.new("RGB", (margin + cell * len(names) + 10, 40 + cell * len(names) + margin), "white")
    draw = ImageDraw.Draw(image)
    draw.text((margin, 10), "predicted (columns), true (rows)", "black", font)
    for row, name in enumerate(names):
        top = 40 + cell * row
        draw.text((margin - 10, top + cell // 2), name, "black", font, anchor="rm")
        for column, count in enumerate(counts[row]):
            shade = 255 - round(200 * count / max(1, counts[row].sum()))
            box = (margin + cell * column, top, margin + cell * (column + 1), top + cell)
            draw.rectangle(box, (shade, shade, 255), "gray")
            draw.text((box[0] + cell // 2, top + cell // 2), str(count), "black", font, anchor="mm")
    for column, name in enumerate(names):  # turned by 90 degrees below the columns
        label = Image.new("RGB", (margin, 20), "white")
        ImageDraw.Draw(label).text((margin - 10, 10), name, "black", font, anchor="rm")
        image.paste(label.rotate(90, expand=True), (margin + cell * column + cell // 2 - 10, 40 + cell * len(names)))
    with replacing(path) as temporary:
        image.save(temporary, "PNG")
