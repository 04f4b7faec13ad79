"""Using a trained run: adapt to a few labeled examples, then predict.

    learner = maml.load("logs/omniglot5way")
    adapted = learner.adapt(support_images, ["dog", "cat", "cow", "hen", "pig"])
    adapted.predict(query_images)  # ["cow", "dog", …]

Nothing here depends on how a model adapts: its `adapt` returns something that only its `predict` reads.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from maml import algorithms
from maml.algorithms import ensemble
from maml.algorithms.protocol import Algorithm
from maml.config import Config
from maml.errors import UserError
from maml.files import make_folder, write_json
from maml.models.protocol import Weights
from maml.tasks.images import read_images
from maml.training import checkpoints
from maml.training.runs import find_run

PART = 256  # query images at a time, where they do not depend on each other


def load(logdir: str | os.PathLike = "logs", model: Any = None, **flags: Any) -> Any:
    """Loads a run: a `Learner`, or an `OwnLearner` for runs of `maml.train`.

    Args:
        logdir: a run's folder, or a folder of runs, of which the latest that agrees with `flags` is loaded.
        model: for runs of `maml.train`: the model that was trained, with `loss` and `adapt` if they were functions.
        flags: flags of `main.py`, which select the run and its checkpoint and override its setting, as
            in a test: `test_iter=3000`, `test_checkpoint="best"`, `bn_mode="support"`, `update_lr=0.1`.

    Raises:
        UserError: there is no such run, checkpoint or flag.
    """
    if model is not None:
        from maml.own.learner import load_own

        return load_own(logdir, model, **flags)
    return open_learner(flags | {"logdir": os.fspath(logdir)})


def open_learner(given: dict[str, Any]) -> "Learner":
    """The learner that the flags describe; see `load`."""
    folder, config = find_run(given)
    refuse_own(config, folder)
    return learner_of(config, folder)


def refuse_own(config: Config, folder: Path) -> None:
    """Raises UserError for a run of `maml.train`, whose model only Python can build."""
    if config.datasource == "own":
        raise UserError(
            f'{folder} holds a run of your own model; in Python: maml.load("{folder}", model=...).test(tasks)'
        )


def learner_of(config: Config, folder: Path) -> "Learner":
    """The learner of the run in a folder, with the checkpoint that the config selects."""
    model = algorithms.build(config)
    checkpoint, weights = checkpoints.restore_chosen(folder, config, model)
    return Learner(config, model, weights, checkpoint)


@dataclasses.dataclass(frozen=True)
class Learner:
    """A meta-trained model.

    Images are arrays [n, height, width, channels], or [n, height, width] if they have one channel:
    uint8 from 0 to 255 or floats from 0 to 1, of the size used in training. Omniglot's drawings
    are inverted: ink is bright (255 or 1), paper is 0. `read_images` reads files into such
    arrays. A sinusoid run takes numbers x, [n, 1] (its oracle [n, 3]), instead of images.

    config: the run's setting.
    model: the algorithm, which adapts and predicts.
    weights: what was meta-learned; a list for an ensemble: each adapts by itself, and their outputs are averaged.
    checkpoint: the checkpoint that the weights are from.
    """

    config: Config
    model: Algorithm
    weights: Weights | list[Weights]
    checkpoint: Path

    def adapt(
        self,
        support_images: np.ndarray,
        support_labels: Sequence[Hashable] | np.ndarray,
        num_updates: int | None = None,
    ) -> "Adapted":
        """Learns a new task from a support set, whose classes may have different numbers of images.

        The loss is N times its mean over the support set, for any number of images. With K images per class this
        is the training loss, and with other numbers the inner rate keeps its meaning.

        Args:
            support_images: see the class.
            support_labels: one label per image, of any hashable type, with exactly `num_classes`
                different ones (two or more for prototypical and matching networks); for a sinusoid run the
                values y, [n, 1].
            num_updates: inner steps; None: as many as in a test (10, or `test_num_updates`).

        Raises:
            UserError: shapes, types or the number of classes do not fit.
        """
        inputs = self.inputs(support_images, "support_images")
        if self.config.classification:
            classes, labels = self._one_hot(support_labels, len(inputs))
        else:
            classes, labels = (), self._targets(support_labels, len(inputs))
        state = ensemble.adapt(self.model, self.weights, inputs, labels, self._steps(num_updates))
        return Adapted(self, classes, inputs, state)

    def demo(self, **launch: Any) -> Any:
        """Opens a page in the browser to classify your own images; see `maml.demo.page.demo`."""
        from maml.demo.page import demo

        return demo(self, **launch)

    @property
    def ways(self) -> int | None:
        """The number of classes of a task; None for any number, of an algorithm that only learns an embedding."""
        return self.config.num_classes if self.config.adapts else None

    def read_images(self, paths: Sequence[str | os.PathLike]) -> np.ndarray:
        """Image files as the training reads them (resized, Omniglot's drawings inverted): uint8 [n, h, w, c].

        Raises:
            UserError: some are unreadable, or there are none.
        """
        config = self.config
        if not config.classification:
            raise UserError("a sinusoid run takes numbers; images are for the other data sources")
        if isinstance(paths, str | os.PathLike):
            raise UserError(f"{paths}: one path, needed a list of them")
        size, channels = config.image_shape
        names = [os.path.expanduser(os.fspath(path)) for path in paths]
        return read_images(names, config.datasource, image_size=size, channels=channels, resize=config.omniglot_resize)

    def export(self, folder: str | os.PathLike, num_updates: int | None = None) -> None:
        """Writes adaptation and prediction as one SavedModel, which TensorFlow loads without this package.

        Its signature `serving_default` takes `support_images` float32 [S, h, w, c] from 0 to 1,
        `support_labels` int64 [S] from 0 to N − 1 and `query_images` [Q, h, w, c], any S and Q, and
        returns `probabilities` [Q, N]. For a sinusoid run the images are `support_inputs` [S, 1] and
        `query_inputs`, the labels float32 [S, 1], and it returns `values` [Q, 1]. The number of steps
        and `bn_mode` are fixed. `export.json` beside it says what it is.

        Raises:
            UserError: the folder is not empty, or cannot be written.
        """
        steps, target = self._steps(num_updates), Path(folder).expanduser()
        check_export(target)
        module = _Exported(self, steps)
        about = {"checkpoint": str(self.checkpoint), "num_updates": steps, "config": self.config.to_dict()}
        write_saved_model(target, module, module.signature, about)

    def _steps(self, num_updates: int | None) -> int:
        if num_updates and not self.config.adapts:
            raise UserError(f"num_updates={num_updates}: {self.config.algorithm} adapts nothing; leave it out")
        return self.config.evaluation_updates if num_updates is None else whole("num_updates", num_updates)

    def inputs(self, images: np.ndarray, name: str) -> tf.Tensor:
        """[n, dim_input] of images, or of the numbers of a regression.

        Args:
            images: see the class.
            name: of the argument, for the message.

        Raises:
            UserError: their shape, type or range does not fit.
        """
        array, (size, channels) = np.asarray(images), self.config.image_shape
        shapes: list[tuple[int, ...]] = [(size, size, channels)] + [(size, size)] * (channels == 1)
        if not self.config.classification:
            shapes = [self.model.model.input_shape]
        if array.shape[1:] not in shapes or len(array) == 0:
            needed = " or ".join(f"[n, {', '.join(map(str, shape))}]" for shape in shapes)
            raise UserError(f"{name}: shape {list(array.shape)}, needed {needed} with n of 1 or more")
        if not self.config.classification:
            array = _numbers(array, name)
        elif array.dtype == np.uint8:
            array = array.astype(np.float32) / np.float32(255)
        elif not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{name}: of type {array.dtype}, needed uint8 from 0 to 255 or floats from 0 to 1")
        elif not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"{name}: floats from {array.min():g} to {array.max():g}, needed 0 to 1 (or uint8 from 0 to 255)"
            )
        return tf.constant(array.reshape(len(array), -1), self.config.dtype)

    def _one_hot(self, labels: Sequence[Hashable] | np.ndarray, examples: int) -> tuple[tuple, tf.Tensor]:
        """The classes in the order of their first example, and the labels as [examples, N]."""
        given = np.asarray(labels).tolist() if hasattr(labels, "__array__") else list(labels)
        try:
            classes = tuple(dict.fromkeys(given))
        except TypeError as error:
            raise UserError("support_labels: needed one hashable label an image, not one-hot rows") from error
        if len(given) != examples:
            raise UserError(f"support_labels: {len(given)} labels for {examples} images; give one an image")
        if self.ways not in (None, len(classes)):
            raise UserError(
                f"support_labels: {len(classes)} different labels, and this run learned {self.ways}-way "
                f"tasks: give images of exactly {self.ways} classes"
            )
        if len(classes) < 2:
            raise UserError(f"support_labels: {len(classes)} different labels; two classes at least can be told apart")
        index = {label: column for column, label in enumerate(classes)}
        return classes, tf.one_hot([index[label] for label in given], len(classes), dtype=self.config.dtype)

    def _targets(self, values: Any, examples: int) -> tf.Tensor:
        array = np.asarray(values)
        if array.shape != (examples, 1):
            raise UserError(
                f"support_labels: shape {list(array.shape)}, needed [{examples}, 1], a value for each input"
            )
        return tf.constant(_numbers(array, "support_labels"), self.config.dtype)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A learner after its adaptation to a task.

    With batch-norm, predictions are transductive unless the run was loaded with
    `bn_mode="support"`: images are standardized with the statistics of all images of the same
    call. The prediction for an image then depends on the others, and a single image, or
    images of a single class, are classified badly.

    learner: the learner that was adapted.
    classes: the labels, in the order of the columns of `predict_proba`; empty for a sinusoid run.
    support: the support set's inputs [S, dim_input].
    state: what the model's `adapt` returned; a list of these for an ensemble.
    """

    learner: Learner
    classes: tuple
    support: tf.Tensor
    state: Any

    def predict(self, images: np.ndarray) -> Any:
        """The predicted label of each image, as a list; for a sinusoid run the values [n, 1].

        Raises:
            UserError: shape or type do not fit.
        """
        outputs = self._outputs(images)
        if not self.classes:
            return outputs.numpy()
        return [self.classes[index] for index in tf.argmax(outputs, -1).numpy()]

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """Probabilities [n, N], one column for each of `classes`.

        Raises:
            UserError: shape or type do not fit, or the run is a regression.
        """
        if not self.classes:
            raise UserError("a sinusoid run has no probabilities; use predict")
        return tf.nn.softmax(self._outputs(images)).numpy()

    def _outputs(self, images: np.ndarray) -> tf.Tensor:
        inputs = self.learner.inputs(images, "images")
        together = len(inputs) if self.learner.config.transductive else PART
        parts = [inputs[start : start + together] for start in range(0, len(inputs), together)]
        model = self.learner.model
        return tf.concat([ensemble.predict(model, self.state, self.support, part) for part in parts], 0)


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number that was given as an argument.

    Raises:
        UserError: it is none, or too small.
    """
    if not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name}={value!r}: must be a whole number, {least} or more")
    return int(value)


def check_export(target: Path) -> None:
    """Raises UserError if a SavedModel cannot be written there."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; choose another --export_dir")
    make_folder(target.absolute().parent, "--export_dir")


def write_saved_model(target: Path, module: tf.Module, signature: Any, about: dict[str, Any]) -> None:
    """Writes a SavedModel with `export.json` in it, completely or not at all.

    Raises:
        UserError: it could not be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=target.absolute().parent) as temporary:
            written = Path(temporary, target.name)
            tf.saved_model.save(module, str(written), signatures=signature)
            write_json(written / "export.json", about)
            os.replace(written, target)
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{target}: the export could not be written ({reason}); free some space") from error


class _Exported(tf.Module):
    """A learner as a SavedModel."""

    def __init__(self, learner: Learner, num_updates: int):
        super().__init__()
        self.learned, read = ensemble.variables(learner.weights)
        self.signature = _signature(learner, read, num_updates)


def _signature(learner: Learner, read: Callable[[], Any], num_updates: int):
    """The function that is exported; see `Learner.export`."""
    config, model = learner.config, learner.model
    size, channels = config.image_shape
    if config.classification:
        kind, shape, labels = "images", [None, size, size, channels], tf.TensorSpec([None], tf.int64, "support_labels")
    else:
        kind, shape = "inputs", [None, *model.model.input_shape]
        labels = tf.TensorSpec([None, 1], tf.float32, "support_labels")
    examples = [tf.TensorSpec(shape, tf.float32, f"{role}_{kind}") for role in ("support", "query")]

    @tf.function(autograph=False, input_signature=[examples[0], labels, examples[1]])
    def predict(support, labels, query):
        support, query = (
            tf.cast(tf.reshape(given, [-1, *model.model.input_shape]), config.dtype) for given in (support, query)
        )
        if config.classification:
            labels = tf.one_hot(labels, config.num_classes)
        state = ensemble.adapt(model, read(), support, tf.cast(labels, config.dtype), num_updates)
        outputs = tf.cast(ensemble.predict(model, state, support, query), tf.float32)
        return {"probabilities": tf.nn.softmax(outputs)} if config.classification else {"values": outputs}

    return predict


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise UserError(f"{name}: of type {array.dtype}, needed finite numbers")
    return array
