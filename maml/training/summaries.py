"""What TensorBoard shows of a run.

  <run>/        the flags: as text, and as HParams with the last validation; the charts of the Custom Scalars tab
  <run>/train/  losses and accuracies of training tasks; histograms on request
  <run>/val/    losses and accuracies of the validation tasks; episodes as images

Training and validation write the same tags, so TensorBoard draws both curves in one chart.
"""

import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout
from tensorboard.plugins.custom_scalar.summary import pb as custom_scalars
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from maml.algorithms.protocol import Column
from maml.models.protocol import Weights

# What training minimizes (or its accuracy): the value after as many steps as training takes.
CURVE = "{name}/Post-update"


class Point(NamedTuple):
    """A point of a curve: when it was written in seconds since 1970, and its value."""

    iteration: int
    time: float
    value: float


def read_curve(folder: Path, tag: str) -> list[Point]:
    """The curve of a tag in a folder of event files, by iteration; [] if there is none.

    What a training that went on from an older checkpoint did again counts once.
    """
    if not folder.is_dir():
        return []
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    if tag not in events.Tags()["tensors"]:
        return []
    found = {e.step: Point(e.step, e.wall_time, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)}
    return [found[iteration] for iteration in sorted(found)]


class SummaryWriter:
    """Writes TensorBoard's event files; with `enabled=False` it writes nothing."""

    def __init__(self, folder: Path, enabled: bool):
        """Opens nothing yet: a sub-folder appears with the first thing that is written in it."""
        self._folder, self._enabled = folder, enabled
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def flags(self, flags: dict[str, Any], trial: dict[str, Any]) -> None:
        """Writes the flags as text and as HParams.

        Args:
            flags: all of them.
            trial: those that make a run what it is; runs alike in them are repetitions of one trial.
        """
        rows = "".join(f"| {name} | {value} |\n" for name, value in flags.items())
        metrics = [
            hparams.Metric(CURVE.format(name=name), group="val", display_name=f"validation {name}")
            for name in ("loss", "accuracy")
        ]
        with self._at("", 0):
            tf.summary.text("flags", f"| flag | value |\n|---|---|\n{rows}")
            hparams.hparams_config([hparams.HParam(name) for name in trial], metrics)
            hparams.hparams(trial)

    def layout(self, names: Sequence[str], learned: Collection[str]) -> None:
        """Writes the charts of the Custom Scalars tab: those to look at first, every step, then what is learned.

        Args:
            names: "loss", and "accuracy" of a classification.
            learned: tags of `charts`; those that differ in what follows the last / share a chart.
        """
        together = dict.fromkeys(tag.rsplit("/", 1)[0] for tag in learned)  # ordered, each once
        categories = {
            "What to look at first": {name: [f"^{CURVE.format(name=name)}$"] for name in names},
            "After every step": {name: [f"^{name}/Pre-update$", f"^{name}/Post-update, "] for name in names},
            "Learned or scheduled": {tag: [f"^{re.escape(tag)}(/|$)"] for tag in together},
        }
        layout = Layout(
            category=[
                Category(title=title, chart=[Chart(title=t, multiline={"tag": tags}) for t, tags in charts.items()])
                for title, charts in categories.items()
                if charts
            ]
        )
        with self._at("", 0):
            tf.summary.experimental.write_raw_pb(custom_scalars(layout).SerializeToString())

    def measures(
        self, split: str, measures: dict[str, np.ndarray], columns: list[Column], main: int, iteration: int
    ) -> None:
        """Writes the means over the tasks: `loss/Pre-update`, `loss/Post-update, step 1`, …, and of the accuracies.

        Args:
            split: train or val.
            measures: "loss" and "accuracy", each [tasks, columns].
            columns: what they are.
            main: the column that is what training minimizes; `loss/Post-update` is its value.
            iteration: the horizontal axis.
        """
        if not self._enabled:
            return
        # One record for all, its entries copies: tf.summary.scalar takes a third of a millisecond each, a sinusoid's
        # update less.
        record = Summary()
        for name, values in measures.items():
            means = values.mean(0)
            tags = {CURVE.format(name=name): means[main]}
            tags |= {f"{name}/{column.tag}": value for column, value in zip(columns, means, strict=True)}
            for tag, value in tags.items():
                entry = record.value.add()
                entry.CopyFrom(_scalar(tag))
                entry.tensor.float_val[0] = value
        with self._at(split, iteration):
            tf.summary.experimental.write_raw_pb(record.SerializeToString())

    def charts(self, values: dict[str, float], iteration: int) -> None:
        """Writes a point of each curve."""
        with self._at("train", iteration):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)

    def histograms(self, weights: Weights, gradients: Weights, iteration: int) -> None:
        """Writes a histogram of every weight that has a gradient, and of that."""
        with self._at("train", iteration):
            for name, gradient in gradients.items():
                tf.summary.histogram(f"weights/{name}", weights[name])
                tf.summary.histogram(f"gradients/{name}", gradient)

    def image(self, split: str, name: str, image: np.ndarray, iteration: int) -> None:
        """Writes an image, uint8 [height, width, 3]."""
        with self._at(split, iteration):
            tf.summary.image(name, image[None])

    def flush(self) -> None:
        """Writes out what is buffered."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Writes out what is buffered, for the last time."""
        for writer in self._writers.values():
            writer.close()

    def _at(self, split: str, iteration: int):
        """Makes the writer of a sub-folder the one that `tf.summary` writes to."""
        if not self._enabled:
            return tf.summary.create_noop_writer().as_default()
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self._folder / split))
        return self._writers[split].as_default(step=iteration)


@functools.cache
def _scalar(tag: str) -> Summary.Value:
    """What TensorBoard expects of a scalar of this tag; its number is to be filled in."""
    return scalar_pb(tag, 0.0).value[0]
