"""Meta-learning of any model on any tasks, with the same training loop as the official settings.

learner = maml.train(model, task, loss="mse", update_lr=0.1, num_updates=3, logdir="logs/machines")
learner.adapt(x, y).predict(new_x)
"""

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms import ensemble, losses
from maml.algorithms.anil import ANIL
from maml.config import Config
from maml.data_generator import Episodes
from maml.devices import replicas
from maml.errors import UserError, one_line
from maml.files import read_json, write_json
from maml.learner import check_export, whole, write_saved_model
from maml.models.exact import exact_functions
from maml.models.function_model import FunctionModel
from maml.models.keras_model import KerasModel
from maml.models.protocol import Weights
from maml.own_code import code_of
from maml.tasks.image_files import listed
from maml.tasks.own import OwnTasks, numbers, targets
from maml.terminal import aligned
from maml.training import checkpoints
from maml.training.evaluation import Evaluator, TestResult
from maml.training.gradient_check import GradientReport, check_gradients
from maml.training.loop import train as train_run
from maml.training.runs import find_run, lock_run, open_run, record_run, run_folder

LOSSES = ("mse", "xent")
OWN = {"datasource": "own", "norm": "None", "meta_batch_size": 4}
ABOUT = "own.json"
FLOATS = ("float16", "bfloat16", "float32", "float64")


class OwnMAML(ANIL):
    """MAML for the user's model and loss; a body that is not adapted is computed only once, as in ANIL."""

    model: KerasModel | FunctionModel
    compiled = False  # Python draws the tasks, so XLA can compile an update but not the loop around it

    def __init__(self, config: Config, model: Any, loss: str | Callable[[Any, Any], tf.Tensor]):
        """Builds the learner.

        Args:
            loss: "mse" or "xent", both means, or a function of (outputs, y) that returns a scalar.
        """
        named = {"mse": losses.mse, "xent": losses.mean_xent}
        self.loss = named[loss] if isinstance(loss, str) else loss
        super().__init__(config, model)
        for name in ("gradient", "apply", "evaluate") if model.compiled else ():
            setattr(self, name, _compiled(getattr(self, name)))

    def of(self, config: Config) -> "OwnMAML":
        """The same learner with another setting."""
        return OwnMAML(config, self.model, self.loss)

    def of_model(self, model: Any) -> "OwnMAML":
        """The same loss and setting with another model."""
        return OwnMAML(self.config, model, self.loss)

    @property
    def adapted(self) -> frozenset[str]:
        """The weights that `adapt` selected."""
        return self.model.adapted

    def loss_func(self, outputs: Any, labels: Any, shots: Any = None) -> tf.Tensor:
        """Loss of one task, []."""
        with exact_functions():
            return self.loss(outputs, labels)

    def adapt(self, weights: Weights, inputa: Any, labela: Any, num_updates: int) -> Weights:
        """The fast weights after `num_updates` steps on one task's support set."""
        with self.model.quiet():
            if self.parts:
                return self.on_features.adapt(weights, self.parts[0](weights, inputa), labela, num_updates)
            for step in range(num_updates):
                weights, _, _ = self.inner_step(weights, inputa, labela, step)
        return self.of_step(weights, max(0, num_updates - 1))

    def predict(self, adapted: Weights, inputa: Any, inputb: Any) -> Any:
        """Outputs of one task's query set under adapted weights."""
        return self.model.apply(adapted, inputb)

    def evaluate(
        self, weights: Weights | Sequence[Weights], episodes: Episodes, num_updates: int
    ) -> dict[str, tf.Tensor]:
        """As MAML's, without dropout."""
        with self.model.quiet():
            return super().evaluate(weights, episodes, num_updates)


def _compiled(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled with XLA.

    Raises:
        UserError: when it is called and uses something that XLA or the task axis does not support.
    """

    @partial(tf.function, autograph=False)
    def called(*arguments: Any) -> Any:
        try:
            return tf.function(compute, jit_compile=True, autograph=False)(*arguments)
        except Exception as error:  # of whatever kind TensorFlow's converter raises
            reason = one_line(error, 200)
            raise UserError(f"jit_compile=True: this model or loss cannot be compiled so ({reason})") from error

    return called


def model_of(model: Any, adapt: Any, dtype: str = "float32") -> KerasModel | FunctionModel:
    """Wraps a Keras model, or (weights, forward), as a `Model`."""
    if isinstance(model, tuple):
        if len(model) != 2 or not isinstance(model[0], Mapping) or not callable(model[1]):
            raise UserError("model: a tuple must be (weights, forward), a dict of arrays and a function of both")
        return FunctionModel(*model, adapt=adapt, dtype=dtype)
    if not hasattr(model, "stateless_call"):
        raise UserError(f"model: {type(model).__name__}, needed a Keras 3 model or (weights, forward)")
    return KerasModel(model, adapt, dtype)


def train(
    model: Any,
    tasks: Any,
    *,
    val: Any = None,
    loss: str | Callable[[Any, Any], tf.Tensor] = "mse",
    adapt: str | Callable[[str], bool] = "all",
    learn_rates: str | None = None,
    jit_compile: bool = False,
    logdir: str | os.PathLike = "logs/own",
    **flags: Any,
) -> "OwnLearner":
    """Meta-trains your own model with MAML, or resumes the run in `logdir`.

    Args:
        model: a built Keras model (its weights are the initial ones), or (weights, forward): arrays by name, and a
            function of (weights, x).
        tasks: a function of rng (numpy.random.Generator) that returns (support x, support y, query x, query y), a list
            of such tasks, a tf.data.Dataset of them, or an object with `episodes(split, index, count)`. x and y may be
            structures of arrays. All tasks must have the same shapes.
        val: the same for validation; None: `tasks` if it is an object that handles splits, otherwise no validation.
        loss: "mse" or "xent" (logits with labels or one-hot rows), both means, or a function of (outputs, y) that
            returns a scalar.
        adapt: what the inner loop adapts: "all", "head" (the default with algorithm="anil") or a
            function of a weight's name.
        learn_rates: None, "weight" (an inner rate for every weight, Meta-SGD) or "step" (for every tensor and step).
        jit_compile: compile the update with XLA, with all tasks in the same operations: for small dense models,
            which are dominated by op dispatch. The first update takes longer. Not for max pooling,
            whose second derivative XLA computes inexactly in float32: Keras models with it are refused.
        logdir: folder of the runs; each setting gets a subfolder.
        flags: flags of `main.py`: algorithm ("maml", "anil", "metasgd" or "maml++"),
            update_lr, num_updates, metatrain_iterations, meta_batch_size, meta_lr, seed, ….

    Returns:
        The trained learner.

    Raises:
        UserError: something does not fit; the message says what, and what to do.
    """
    given = _given(flags, loss, learn_rates, logdir)
    if flags.get("algorithm") == "anil" and adapt == "all":
        adapt = "head"
    config = Config.from_flags(given)
    own = model_of(model, adapt, config.dtype)
    if jit_compile:
        own.compile()
    replicas.check_divides(config.meta_batch_size, config.accumulate)
    sources = {"train": tasks, "val": val if val is not None else _splitting(tasks)}
    data = OwnTasks(config, sources)
    learner = OwnMAML(config, own, loss)
    _check_model(learner, data, loss)
    if "val" not in data.draws:
        config = learner.config = data.config = config.replace(val_tasks=0)
    say = print if replicas.is_chief() else lambda line: None
    named = loss if isinstance(loss, str) else getattr(loss, "__name__", "own")
    say(f"Loss: {named}" + (", a mean over the examples (the official flags' is N times that)" * (named == "xent")))
    say(f"Weights: {len(own.names)} tensors, of which {len(own.adapted)} are adapted")
    about = _about(model, tasks, loss, adapt, own) | {"like": _shapes(data.like)}
    with _recorded(config, about, data.fingerprint) as folder, _explained(data):
        trained = train_run(config, learner, data, folder)
    say(f"Trained: {trained.progress.iteration} iterations ({folder})")
    return OwnLearner(config, learner, trained.state.weights, folder)


@contextlib.contextmanager
def _explained(data: OwnTasks) -> Iterator[None]:
    """Turns errors of TensorFlow's in the block into what is behind them.

    Raises:
        UserError: a task is wrong, another worker is gone, or there is no second derivative.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise data.error or replicas.lost(error) or error from None
    except LookupError as error:  # of TensorFlow's registry of gradients
        reason = one_line(error)
        raise UserError(
            f"the model or the loss has no second derivative in TensorFlow ({reason}): replace the operation, or give "
            "stop_grad=True for first-order MAML"
        ) from error


@contextlib.contextmanager
def _recorded(config: Config, about: dict[str, Any], fingerprint: dict[str, str]) -> Iterator[Path]:
    """The folder of a run, locked and with its records written; with several workers only the chief does that."""
    if not replicas.is_chief():
        yield run_folder(config)
        return
    with lock_run(config):
        folder, notes = open_run(config, fingerprint)
        for note in notes:
            print(note)
        _check_same_model(folder, about)
        record_run(folder, config, fingerprint)
        write_json(folder / ABOUT, about)
        yield folder


def load_own(logdir: str | os.PathLike, model: Any, loss: Any = None, adapt: Any = None, **flags: Any) -> "OwnLearner":
    """The learner of a run of `maml.train`; see `maml.load`.

    Args:
        model: the model that was trained; its weights are replaced with the learned ones.
        loss: None: that of the run, unless it was a function.
        adapt: None: that of the run, unless it was a function.
    """
    folder, config = find_run(flags | {"logdir": os.fspath(logdir), "datasource": "own"})
    about = read_json(folder / ABOUT)
    if loss is None:
        loss = about["loss"]
        if loss not in LOSSES:
            raise UserError(f"{folder}: was trained with a loss of your own: give it, load(..., loss=...)")
    if adapt is None:
        adapt = about["adapt"]
        if adapt not in ("all", "head"):
            raise UserError(f"{folder}: was trained with an adapt of your own: give it, load(..., adapt=...)")
    _check_loss(loss)
    learner = OwnMAML(config, model_of(model, adapt, config.dtype), loss)
    _, weights = checkpoints.restore_chosen(folder, config, learner)
    return OwnLearner(config, learner, weights, folder)


class TestTable(NamedTuple):
    """The result of a test; `print` shows it as a table.

    labels: of the columns: before adaptation, and after each inner step.
    values: [tasks, columns], accuracies or losses.
    result: means, deviations and 95 % intervals, [columns] each.
    measure: "accuracy" or "loss".
    """

    labels: list[str]
    values: np.ndarray
    result: TestResult
    measure: str

    def __str__(self) -> str:
        """One line per column."""
        measured = zip(self.labels, self.result.mean, self.result.ci95, strict=True)
        rows = [[label, f"{mean:.4g}", f"± {ci95:.3g}"] for label, mean, ci95 in measured]
        return aligned([f"({len(self.values)} tasks)", self.measure, "95 % interval"], rows)


@dataclasses.dataclass(frozen=True)
class OwnLearner:
    """A meta-trained model.

    config: the run's setting.
    model: the algorithm, with the model inside.
    weights: what was meta-learned; a list for an ensemble: each adapts by itself, and their outputs are averaged.
    folder: the run's folder.
    """

    config: Config
    model: OwnMAML
    weights: Weights | list[Weights]
    folder: Path

    def adapt(self, x: Any, y: Any, num_updates: int | None = None) -> "OwnAdapted":
        """Learns a new task from its support set.

        Args:
            x, y: arrays as in the tasks, with any number of examples.
            num_updates: inner steps; None: as many as in training.

        Raises:
            UserError: x or y does not fit the model.
        """
        steps = self._steps(num_updates)
        inputs, arrays = self._tensors(x, "x"), numbers(y, self.config.dtype, "y")
        with _taken(inputs, "x"), self.model.model.quiet():
            outputs = self.model.model.apply(ensemble.best(self.weights), inputs)
        classes = outputs.shape[-1] if self.config.loss == "xent" else 0
        labels = tf.nest.map_structure(tf.constant, targets(arrays, self.config, classes, "y"))
        return OwnAdapted(self, ensemble.adapt(self.model, self.weights, inputs, labels, steps))

    def test(self, tasks: Any, count: int = 600, num_updates: int | None = None) -> TestTable:
        """Measures `count` tasks before adaptation and after each inner step.

        Args:
            tasks: as for `maml.train`; an object that handles splits is asked for "test".
            num_updates: inner steps; None: as many as in training.
        """
        steps, count = self._steps(num_updates), whole("count", count, 1)
        data = OwnTasks(self.config, {"test": tasks})
        _check_model(self.model, data, self.config.loss)
        try:
            measures = Evaluator(self.model, data).tasks(self.weights, "test", count, steps)
        except tf.errors.OpError as error:
            raise data.error or error from None
        measure = "accuracy" if self.config.classification else "loss"
        labels = [column.label for column in self.model.columns(steps)]
        return TestTable(labels, measures[measure], TestResult.of(measures[measure]), measure)

    def check_gradients(self, tasks: Any, directions: int = 4) -> GradientReport:
        """Compares the meta-gradient, recomputed in float64, with central differences.

        Args:
            tasks: as for `maml.train`.
        """
        config = self.config.replace(dtype="float64")
        data = OwnTasks(config, {"train": tasks})
        learner = OwnMAML(config, self.model.model.in_float64(), self.model.loss)
        _check_model(learner, data, self.config.loss)
        weights = {name: tf.cast(weight, tf.float64) for name, weight in ensemble.best(self.weights).items()}
        renamed = dict(zip(self.model.model.names, learner.model.names, strict=True))
        weights = {renamed.get(name, name): weight for name, weight in weights.items()}
        with learner.model.quiet():
            return check_gradients(learner, weights, data.episodes("train", 0, 2), directions)

    def export(self, folder: str | os.PathLike) -> None:
        """Writes adaptation and prediction as one SavedModel: support_x, support_y, query_x → outputs.

        Raises:
            UserError: x or y are structures, or the folder is not empty.
        """
        target = Path(folder).expanduser()
        check_export(target)
        like = read_json(self.folder / ABOUT)["like"]
        if any(isinstance(part, list) for part in like):
            raise UserError("export: x or y are structures of arrays, which a SavedModel's signature does not take")
        names = ("support_x", "support_y", "query_x")
        specs = [
            tf.TensorSpec([None, *part["shape"][1:]], part["dtype"], name)
            for part, name in zip(like, names, strict=False)
        ]
        module = tf.Module()
        module.learned, read = ensemble.variables(self.weights)

        @tf.function(autograph=False, input_signature=specs)
        def predict(support_x, support_y, query_x):
            adapted = ensemble.adapt(self.model, read(), support_x, support_y, self.config.num_updates)
            with self.model.model.quiet():
                return {"outputs": ensemble.predict(self.model, adapted, support_x, query_x)}

        about = {"run": str(self.folder), "num_updates": self.config.num_updates, "config": self.config.to_dict()}
        write_saved_model(target, module, predict, about)

    def _steps(self, num_updates: Any) -> int:
        return self.config.num_updates if num_updates is None else whole("num_updates", num_updates)

    def _tensors(self, values: Any, name: str) -> Any:
        return tf.nest.map_structure(tf.constant, numbers(values, self.config.dtype, name))


@dataclasses.dataclass(frozen=True)
class OwnAdapted:
    """A learner after its adaptation to a task."""

    learner: OwnLearner
    weights: Weights | list[Weights]

    def predict(self, x: Any) -> Any:
        """Outputs [examples, …]; with "xent" the most probable class of each example."""
        outputs = self._outputs(x)
        if self.learner.config.classification:
            return tf.argmax(outputs, -1).numpy()
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities [examples, classes].

        Raises:
            UserError: the loss is not "xent".
        """
        if not self.learner.config.classification:
            raise UserError('predict_proba is for loss="xent"; use predict')
        return tf.nn.softmax(self._outputs(x)).numpy()

    def _outputs(self, x: Any) -> Any:
        learner, inputs = self.learner, self.learner._tensors(x, "x")
        with _taken(inputs, "x"), learner.model.model.quiet():
            return ensemble.predict(learner.model, self.weights, None, inputs)


def _given(flags: dict[str, Any], loss: Any, learn_rates: str | None, logdir: Any) -> dict[str, Any]:
    _check_loss(loss)
    if not isinstance(logdir, str | os.PathLike):
        raise UserError(f"logdir={logdir!r}: must be a path")
    if "datasource" in flags:
        raise UserError(f"datasource={flags['datasource']!r}: maml.train takes your tasks; main.py has data sources")
    own = OWN | {"loss": loss if isinstance(loss, str) else "own", "logdir": os.path.expanduser(os.fspath(logdir))}
    return own | ({"learn_rates": learn_rates} if learn_rates else {}) | flags


def _check_loss(loss: Any) -> None:
    if loss not in LOSSES if isinstance(loss, str) else not callable(loss):
        raise UserError(f"loss={loss!r}: must be mse, xent, or a function of (outputs, y)")


def _splitting(tasks: Any) -> Any:
    return tasks if hasattr(tasks, "task") or hasattr(tasks, "episodes") else None


def _check_model(learner: OwnMAML, data: OwnTasks, loss: Any) -> None:
    """Runs the model once on the first task, so that what does not fit is said in one line.

    Raises:
        UserError: the model, the loss and the task do not fit each other.
    """
    weights, model = learner.init_state().weights, learner.model
    for name, x in (("support x", data.like[0]), ("query x", data.like[2])):
        with _taken(x, name):
            outputs = model.apply(weights, tf.nest.map_structure(tf.constant, x))
        _check_outputs(outputs, loss, learner.config.dtype)
    if loss == "xent":
        data.one_hot = outputs.shape[-1]
        split, like = next(iter(data.draws)), data.like
        data.like = None
        data.like = data._prepared(split, 0, like)
    for name, place in (("support y", 0), ("query y", 2)):
        x, y = (tf.nest.map_structure(tf.constant, part) for part in data.like[place : place + 2])
        _check_value(learner, weights, x, y, name)


def _check_value(learner: OwnMAML, weights: Weights, x: Any, y: Any, name: str) -> None:
    """Raises UserError if the loss of a set is not one number that depends on the weights, or no graph computes it."""

    def value_of(weights: Weights) -> Any:
        return learner.loss_func(learner.model.apply(weights, x), y)

    try:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = value_of(weights)
        tf.function(value_of, autograph=False).get_concrete_function(weights)
    except Exception as error:  # of whatever kind the user's loss raises
        reason = one_line(error, 300)
        raise UserError(f"the loss does not take the model's outputs and {name}: {reason}") from error
    if not tf.is_tensor(value):
        raise UserError(f"the loss returns {type(value).__name__}, needed a tensor that depends on the outputs")
    if value.shape != ():
        raise UserError(f"the loss returns the shape {list(value.shape)}, needed one number: take its mean")
    if all(slope is None for slope in tape.gradient(value, weights).values()):
        raise UserError(f"the loss of {name} does not depend on any weight: nothing could be learned")


@contextlib.contextmanager
def _taken(x: Any, name: str) -> Iterator[None]:
    """Raises UserError if the model, which is called in the block, does not take its inputs x."""
    try:
        yield
    except Exception as error:  # of whatever kind the user's model raises
        shapes = [list(array.shape) for array in tf.nest.flatten(x)]
        reason = one_line(error, 300)
        raise UserError(f"the model does not take {name} of the shape {shapes}: {reason}") from error


def _check_outputs(outputs: Any, loss: Any, dtype: str) -> None:
    """Raises UserError if a model's outputs are not what the loss takes, or of another precision than the run."""
    if not all(map(tf.is_tensor, tf.nest.flatten(outputs))) or (loss in LOSSES and not tf.is_tensor(outputs)):
        needed = f"one tensor for loss={loss!r}" if loss in LOSSES else "tensors"
        raise UserError(f"the model returns {type(outputs).__name__}, needed {needed}")
    if loss == "xent":
        _check_logits(outputs)
    found = {tensor.dtype.name for tensor in tf.nest.flatten(outputs)}.intersection(FLOATS)
    if other := sorted(found - {dtype}):
        way_out = f"give dtype={other[0]!r}, or " if other[0] in ("float32", "float64") else ""
        raise UserError(f"the model computes in {other[0]}, and the run in {dtype}: {way_out}build it in {dtype}")


def _check_logits(outputs: tf.Tensor) -> None:
    sums = tf.reduce_sum(outputs, -1).numpy()
    if (outputs.numpy() >= 0).all() and np.allclose(sums, 1, atol=1e-4):
        raise UserError('the outputs are probabilities, and loss="xent" takes logits: leave the softmax out')


def _about(model: Any, tasks: Any, loss: Any, adapt: Any, own: Any) -> dict[str, Any]:
    """What a reader of the run wants to know of your own code: its source, as text."""
    forward = model[1] if isinstance(model, tuple) else type(model)
    return {
        "loss": loss if isinstance(loss, str) else _source(loss),
        "compared_loss": loss if isinstance(loss, str) else code_of(loss),
        "adapt": adapt if isinstance(adapt, str) else _source(adapt),
        "model": _source(forward),
        "tasks": _source(tasks if callable(tasks) else type(tasks)),
        "weights": {name: list(weight.shape) for name, weight in own.init(0).items()},
        "adapted": sorted(own.adapted),
    }


def _check_same_model(folder: Path, about: dict[str, Any]) -> None:
    """Raises UserError if a folder holds a run of another model or loss, or one that adapts other weights."""
    if not (folder / ABOUT).exists():
        return
    before, now = read_json(folder / ABOUT), about["weights"]
    if before.get("weights") != now:
        other = sorted(set(map(str, before.get("weights", {}).items())) ^ set(map(str, now.items())))
        raise UserError(
            f"{folder} holds a run of another model (they differ in {listed(other)}): choose another logdir, or start "
            "over with resume=False"
        )
    for name, what in (("adapted", "that adapts other weights"), ("compared_loss", "with another loss")):
        if before.get(name, about[name]) != about[name]:
            raise UserError(f"{folder} holds a run {what}: choose another logdir, or start over with resume=False")


def _shapes(like: tuple) -> list[Any]:
    """Shape and type of each part of a task, for `export`; of a structure, a list of them."""
    each = [[{"shape": list(a.shape), "dtype": str(a.dtype)} for a in tf.nest.flatten(part)] for part in like]
    return [part[0] if len(part) == 1 else part for part in each]


def _source(of: Any) -> str:
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        return repr(of)
