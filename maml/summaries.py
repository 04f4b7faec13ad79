"""TensorBoard scalars under the official names."""

from pathlib import Path

import numpy as np
import tensorflow as tf


class SummaryWriter:
    """Writes measures of adaptation as scalars; with `enabled=False` it writes nothing."""

    def __init__(self, folder: Path, enabled: bool):
        """Opens an event file in `folder`."""
        self._writer = tf.summary.create_file_writer(str(folder)) if enabled else tf.summary.create_noop_writer()

    def measures(self, prefix: str, measures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes `<prefix>/Pre-update loss`, `<prefix>/Post-update loss, step 1`, … and the accuracies.

        Args:
            prefix: metatrain or metaval.
            measures: "loss" and "accuracy", each [tasks, steps + 1].
            iteration: the horizontal axis.
        """
        with self._writer.as_default(step=iteration):
            for name, values in measures.items():
                before, *after = values.mean(0)
                tf.summary.scalar(f"{prefix}/Pre-update {name}", before)
                for step, value in enumerate(after, start=1):
                    tf.summary.scalar(f"{prefix}/Post-update {name}, step {step}", value)

    def text(self, name: str, text: str) -> None:
        """Writes a text (Markdown) at iteration 0."""
        with self._writer.as_default(step=0):
            tf.summary.text(name, text)

    def close(self) -> None:
        """Writes out what is buffered."""
        self._writer.close()
