"""Tasks of your own: functions, lists, data sets of tasks, or objects that make batches of them.

A task is (support x, support y, query x, query y), arrays or structures of arrays with a leading axis of examples. It
is a function of (seed, split, number): a run repeats and resumes.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import tensorflow as tf

from maml.config import Config
from maml.data_generator import WHOLE, DataGenerator, Episodes, Part
from maml.devices import replicas
from maml.errors import UserError, one_line
from maml.own.code import code_of
from maml.tasks.class_folders import SPLITS

PARTS = ("support x", "support y", "query x", "query y")
MOST_TASKS = 100_000  # of a tf.data.Dataset, which is read into memory
AHEAD = 4  # batches that are drawn while the model computes


class OwnTasks:
    """Batches of tasks for training and testing, drawn ahead in a thread.

    error: what was wrong with a task that was drawn inside a compiled function.
    """

    def __init__(self, config: Config, tasks: dict[str, Any]):
        """Draws the first training task, which says what all of them look like.

        Args:
            tasks: by split; see `maml.train`.

        Raises:
            UserError: tasks cannot be drawn, or are none.
        """
        self.config = config
        self.one_hot = 0  # number of classes, once it is known that y are labels
        tasks = {split: _listed(given) for split, given in tasks.items() if given is not None}
        self.draws = {split: _drawer(given, split) for split, given in tasks.items()}
        self.fingerprint = {
            split: content for split, given in tasks.items() if (content := _content(given, split)) is not None
        }
        self.error: UserError | None = None
        self.like: Any = None
        self._pool = ThreadPoolExecutor(1)
        self._ahead: dict[tuple, Future] = {}
        self._lock = Lock()  # replicas of one process draw at the same time
        if not self.draws:
            raise UserError("tasks: None, needed a function of rng, a list of tasks, or an object")
        split = next(iter(self.draws))
        self.like = self._prepared(split, 0, self._raw(split, 0))

    def _raw(self, split: str, number: int) -> Any:
        rng = np.random.default_rng([self.config.seed, SPLITS.index(split), number])
        try:
            return self.draws[split](rng, number)
        except UserError:
            raise
        except Exception as error:  # of whatever kind the user's task raises
            reason = one_line(error, named=True)
            raise UserError(f"task {number} of {split}: your task raised {reason}") from error

    def _prepared(self, split: str, number: int, task: Any) -> tuple:
        """One task as arrays of the right types, checked.

        Raises:
            UserError: it is no task, has another form than the first one, or is not finite.
        """
        where = f"task {number} of {split}"
        if not isinstance(task, Sequence | Episodes) or len(task) != len(PARTS):
            found = f"{len(task)} parts" if isinstance(task, Sequence) else type(task).__name__
            raise UserError(f"{where}: {found}, needed (support x, support y, query x, query y)")
        parts = []
        for name, part in zip(PARTS, task, strict=True):
            arrays = numbers(part, self.config.dtype, f"{where}: {name}")
            is_y = name.endswith("y")
            parts.append(targets(arrays, self.config, self.one_hot, f"{where}: {name}") if is_y else arrays)
        if self.like is not None:
            _check_alike(where, parts, self.like)
        return tuple(parts)

    def task(self, split: str, number: int) -> tuple:
        """One task: (support x, support y, query x, query y)."""
        return self._prepared(split, number, self._raw(split, number))

    def _batch(self, split: str, index: int, count: int) -> list[np.ndarray]:
        tasks = [self.task(split, index * count + place) for place in range(count)]
        return [np.stack(values) for values in zip(*map(tf.nest.flatten, tasks), strict=True)]

    def _drawn(self, split: str, index: int, count: int, stride: int) -> list[np.ndarray]:
        """A batch that was begun before, and the next ones begun: each `stride`-th is of this replica."""
        waiting = [(split, i, count) for i in range(index, index + AHEAD * stride + 1, stride)]
        with self._lock:
            kept = {place: future for place, future in self._ahead.items() if (place[1] - index) % stride}
            self._ahead = kept | {
                place: self._ahead.get(place) or self._pool.submit(self._batch, *place) for place in waiting
            }
            found = self._ahead[waiting[0]]
        try:
            return found.result()
        except UserError as error:
            self.error = error
            raise

    def episodes(self, split: str, index: Any, meta_batch_size: int, part: Part = WHOLE) -> Episodes:
        """The `index`-th batch of tasks of a split, or a part of it; `index` is an int or an integer tensor []."""
        flat = tf.nest.flatten(self.like)
        index, meta_batch_size = index * part.parts + part.number, meta_batch_size // part.parts  # in smaller batches
        stride = part.parts if replicas.count() > 1 else 1
        drawn = tf.numpy_function(
            lambda index: self._drawn(split, int(index), meta_batch_size, stride),
            [index],
            [tf.as_dtype(array.dtype) for array in flat],
            stateful=False,
        )
        for tensor, array in zip(drawn, flat, strict=True):
            tensor.set_shape([meta_batch_size, *array.shape])
        return Episodes(*tf.nest.pack_sequence_as(self.like, drawn))


def numbers(values: Any, dtype: str, name: str) -> Any:
    """Arrays, or a structure of them, with a leading axis of examples: floats of the type, whole numbers as int32.

    Args:
        name: theirs, for the message.

    Raises:
        UserError: they hold something else than finite numbers, or no example.
    """

    def checked(value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind in "SUV":
            raise ValueError(f"holds {array.dtype}, needed numbers")
        if not array.shape:
            raise ValueError("holds a single number; make lists an array with np.array")
        if not len(array):
            raise ValueError("holds no example")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("holds a nan or an infinity")
        return array.astype(dtype if array.dtype.kind == "f" else np.int32 if array.dtype.kind in "iu" else array.dtype)

    try:
        return tf.nest.map_structure(checked, values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error


def targets(y: Any, config: Config, classes: int, name: str) -> Any:
    """What the loss compares outputs with: for "mse" floats, for "xent" labels from 0 to `classes` − 1 as rows.

    Args:
        classes: 0 while it is not known: labels stay as they are, as floats and whatever a loss of one's own takes do.

    Raises:
        UserError: a label is out of range; `name` is theirs.
    """
    dtype = config.dtype

    def rows(array: np.ndarray) -> np.ndarray:
        if config.loss == "mse":
            return array.astype(dtype)
        if config.loss != "xent" or not classes or array.dtype.kind != "i":
            return array
        if not 0 <= array.min() <= array.max() < classes:
            raise UserError(f"{name}: labels from {array.min()} to {array.max()}, and the model has {classes} outputs")
        return np.eye(classes, dtype=dtype)[array]

    return tf.nest.map_structure(rows, y)


def _drawer(given: Any, split: str) -> Callable[[np.random.Generator, int], Any]:
    """A function of (generator of random numbers, number of the task)."""
    if hasattr(given, "task"):
        return lambda rng, number: given.task(split, number)
    if hasattr(given, "episodes"):
        return lambda rng, number: tf.nest.map_structure(lambda a: np.asarray(a)[0], given.episodes(split, number, 1))
    if inspect.isgenerator(given) or inspect.isgeneratorfunction(given):
        raise UserError("tasks: a generator cannot be repeated, so no run could resume; give a function of rng")
    if isinstance(given, Sequence):
        if not given:
            raise UserError("tasks: the list is empty")
        return lambda rng, number: given[int(rng.integers(len(given)))]
    if not callable(given):
        raise UserError(f"tasks: {type(given).__name__}, needed a function of rng, a list of tasks, or an object")
    return lambda rng, number: given(rng)


def _listed(given: Any) -> Any:
    """A data set as the list of its tasks; anything else as it is."""
    if not isinstance(given, tf.data.Dataset):
        return given
    tasks = list(given.take(MOST_TASKS + 1).as_numpy_iterator())
    if len(tasks) > MOST_TASKS:
        raise UserError(f"tasks: the tf.data.Dataset has more than {MOST_TASKS} tasks; give a function of rng")
    return tasks


def _content(given: Any, split: str) -> str | None:
    """What tells other tasks apart: of a function its code, of a list its ends; None where nothing does."""
    if isinstance(given, FolderTasks):
        return given.fingerprint(split)
    if isinstance(given, Sequence) and given:
        digest = hashlib.sha256(str(len(given)).encode())
        for value in tf.nest.flatten([given[0], given[-1]]):
            array = np.asarray(value)
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()
    # Not of an object: what it counts or keeps may change with every task.
    code = code_of(given) if inspect.isroutine(given) or isinstance(given, functools.partial) else None
    return None if code is None else hashlib.sha256(code.encode()).hexdigest()


def _check_alike(where: str, parts: list[Any], like: tuple) -> None:
    for name, part, first in zip(PARTS, parts, like, strict=True):
        shapes, expected = ([tuple(a.shape) for a in tf.nest.flatten(each)] for each in (part, first))
        if shapes != expected:
            raise UserError(f"{where}: {name} has the shape {shapes}, and the first task's has {expected}")


class FolderTasks:
    """Tasks of images in folders, `<data_dir>/{train,val,test}/<class>/<image>`; see `folder_tasks`."""

    def __init__(self, config: Config):
        """Looks at nothing yet: a split is read when it is first asked for."""
        self.config = config
        self._read: dict[str, DataGenerator] = {}

    def fingerprint(self, split: str) -> str | None:
        """Of the content of a split's images."""
        return self._of(split).fingerprint.get(split)

    def _of(self, split: str) -> DataGenerator:
        if split not in self._read:
            self._read[split] = DataGenerator(self.config, (split,))
        return self._read[split]

    def task(self, split: str, number: int) -> tuple:
        """(support x, support y, query x, query y): images [n, height, width, channels] in [0, 1], one-hot labels."""
        episodes = self._of(split).episodes(split, number, 1)
        size, channels = self.config.image_shape
        xa, ya, xb, yb = (np.asarray(tensor)[0] for tensor in episodes)
        return tuple(
            part.reshape(-1, size, size, channels) if place % 2 == 0 else part
            for place, part in enumerate((xa, ya, xb, yb))
        )


def folder_tasks(
    data_dir: str,
    image_size: int = 84,
    channels: int = 3,
    num_classes: int = 5,
    shots: int = 1,
    queries: int = 15,
    seed: int = 0,
) -> FolderTasks:
    """Few-shot tasks of your own images, for `maml.train`.

    Args:
        data_dir: with train/, val/ and test/, each with a folder of images a class.
        image_size, channels: that images are brought to.
        num_classes: of a task.
        shots, queries: support and query images a class.
        seed: of the tasks.
    """
    flags = {"datasource": "folder", "data_dir": data_dir, "image_size": image_size, "channels": channels}
    flags |= {"num_classes": num_classes, "update_batch_size": shots, "query_size": queries, "seed": seed}
    return FolderTasks(Config.from_flags({**flags, "max_pool": False}))
