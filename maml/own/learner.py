"""A trained model of the user's: adapts to tasks, is tested, checked and exported."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms import ensemble
from maml.config import Config
from maml.errors import UserError
from maml.files import read_json
from maml.learner import check_export, whole, write_saved_model
from maml.models.protocol import Weights
from maml.own import checks, record
from maml.own.algorithm import LOSSES, OwnMAML, model_of
from maml.own.tasks import OwnTasks, numbers, targets
from maml.terminal import aligned
from maml.training import checkpoints
from maml.training.evaluation import Evaluator, TestResult
from maml.training.gradient_check import GradientReport, check_gradients
from maml.training.runs import find_run


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
        with checks.taken(inputs, "x"), self.model.model.quiet():
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
        checks.check_model(self.model, data, self.config.loss)
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
        checks.check_model(learner, data, self.config.loss)
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
        like = read_json(self.folder / record.ABOUT)["like"]
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
        with checks.taken(inputs, "x"), learner.model.model.quiet():
            return ensemble.predict(learner.model, self.weights, None, inputs)


def load_own(logdir: str | os.PathLike, model: Any, loss: Any = None, adapt: Any = None, **flags: Any) -> "OwnLearner":
    """The learner of a run of `maml.train`; see `maml.load`.

    Args:
        model: the model that was trained; its weights are replaced with the learned ones.
        loss: None: that of the run, unless it was a function.
        adapt: None: that of the run, unless it was a function.
    """
    folder, config = find_run(flags | {"logdir": os.fspath(logdir), "datasource": "own"})
    about = read_json(folder / record.ABOUT)
    if loss is None:
        loss = about["loss"]
        if loss not in LOSSES:
            raise UserError(f"{folder}: was trained with a loss of your own: give it, load(..., loss=...)")
    if adapt is None:
        adapt = about["adapt"]
        if adapt not in ("all", "head"):
            raise UserError(f"{folder}: was trained with an adapt of your own: give it, load(..., adapt=...)")
    checks.check_loss(loss)
    learner = OwnMAML(config, model_of(model, adapt, config.dtype), loss)
    _, weights = checkpoints.restore_chosen(folder, config, learner)
    return OwnLearner(config, learner, weights, folder)
