"""Predictions for a folder of images, from a folder of support classes."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maml.errors import UserError
from maml.files import replacing
from maml.learner import Learner
from maml.tasks.image_files import class_images, folder_images


class Predictions(NamedTuple):
    """What was predicted for Q images of N classes.

    files: their names, sorted.
    classes: the support folder's class folders, sorted.
    probabilities: [Q, N].
    support: number of support images.
    """

    files: list[str]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    support: int

    def rows(self) -> list[tuple[str, str, float]]:
        """(file, its most probable class, that probability) of each image."""
        best = self.probabilities.argmax(1)
        return [
            (name, self.classes[column], float(row[column]))
            for name, column, row in zip(self.files, best, self.probabilities, strict=True)
        ]


def predict_folder(learner: Learner, support: str, query: str) -> Predictions:
    """Adapts to the class folders in `support` and classifies the images in `query`.

    Raises:
        UserError: a folder is missing, holds something else, or has another number of classes.
    """
    if not learner.config.classification:
        raise UserError("--predict is for images, and this run is of sinusoids; adapt it in Python with maml.load")
    for flag, folder in (("support", support), ("query", query)):
        if not os.path.isdir(folder):
            raise UserError(f"--{flag}={folder}: no such folder; name a folder of images")
    classes = class_images(support)
    if len(classes) != learner.config.num_classes:
        raise UserError(
            f"--support={support} has {len(classes)} class folders, and this run learned "
            f"{learner.config.num_classes}-way tasks: give exactly {learner.config.num_classes}"
        )
    labels = [name for name, paths in classes.items() for _ in paths]
    files = folder_images(query)
    images = learner.read_images([path for paths in classes.values() for path in paths])
    adapted = learner.adapt(images, labels)
    probabilities = adapted.predict_proba(learner.read_images(files))
    return Predictions([Path(path).name for path in files], adapted.classes, probabilities, len(labels))


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes a .csv: file, class and its probability, then the probability of every class.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "probability", *(f"p({name})" for name in predictions.classes)])
        for row, every in zip(predictions.rows(), predictions.probabilities, strict=True):
            writer.writerow([*row, *map(float, every)])
