"""Measuring what adaptation achieves, and the official meta-test."""

import contextlib
import csv
import math
import os
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maml.algorithms.protocol import Algorithm, Column
from maml.config import Config, names_of
from maml.data_generator import Episodes, TaskSource
from maml.devices import replicas
from maml.errors import UserError
from maml.files import read_json, replacing, write_json
from maml.models.protocol import Weights


class Evaluator:
    """Measures fixed tasks of a split, `config.evaluation_block` at a time.

    The tasks are a function of the seed and the split alone: asking for more of them adds tasks
    and changes none.
    """

    def __init__(self, model: Algorithm, data: TaskSource):
        """Prepares the compiled measurement."""
        self._model, self._data, self._block = model, data, model.config.evaluation_block

        # A partial has no code object, by which TensorFlow would count the tracings of all learners in a process
        # together, and warn of them.
        compiled = partial(tf.function, autograph=False, reduce_retracing=True)
        measure = compiled(partial(_measured, model, data), jit_compile=model.compiled)
        self._measure = measure if replicas.count() == 1 else compiled(partial(_together, measure))

    def batch(
        self, weights: Weights | Sequence[Weights], split: str, index: int, tasks: int, num_updates: int
    ) -> dict[str, np.ndarray]:
        """Measures the `index`-th batch of tasks: "loss" and "accuracy", [tasks, columns]. Of n replicas each does one.

        Then these are the batches n · index to n · index + n − 1: [n · tasks, columns].
        """
        measures = self._measure(weights, tf.constant(index), split, tasks, num_updates)
        return {name: values.numpy() for name, values in measures.items()}

    def tasks(
        self,
        weights: Weights | Sequence[Weights],
        split: str,
        tasks: int,
        num_updates: int,
        progress=lambda blocks: blocks,
    ):
        """Measures the first `tasks` tasks of a split: "loss" and "accuracy", [tasks, columns].

        Args:
            weights: of one checkpoint, or of several: an ensemble.
            progress: wraps the range of blocks, to show how far it is.
        """
        blocks = [
            self.batch(weights, split, index, self._block, num_updates)
            for index in progress(range(math.ceil(tasks / (self._block * replicas.count()))))
        ]
        return {name: np.concatenate([block[name] for block in blocks])[:tasks] for name in blocks[0]}

    def first_task(self, weights: Weights, split: str, num_updates: int) -> tuple[Episodes, np.ndarray]:
        """The first of a split's tasks, and its query outputs after adaptation, [N·Q, dim_output]."""
        block = self._data.episodes(split, 0, self._block)
        task = block.tasks()[0]
        adapted = self._model.adapt(weights, task.inputa, task.labela, num_updates)
        return task, self._model.predict(adapted, task.inputa, task.inputb).numpy()


def _measured(
    model: Algorithm, data: TaskSource, weights: Any, index: tf.Tensor, split: str, tasks: int, num_updates: int
) -> dict[str, tf.Tensor]:
    return model.evaluate(weights, data.episodes(split, index, tasks), num_updates)


def _together(
    measure: Callable, weights: Any, index: tf.Tensor, split: str, tasks: int, num_updates: int
) -> dict[str, tf.Tensor]:
    """The measures of all replicas, each of its own batch."""
    return replicas.together(lambda part: measure(weights, index * part.parts + part.number, split, tasks, num_updates))


class TestResult(NamedTuple):
    """Mean, standard deviation and half width of the 95 % interval of each column, [columns] each."""

    mean: np.ndarray
    std: np.ndarray
    ci95: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "TestResult":
        """The statistics of [tasks, columns] values, the interval as 1.96 · std / √tasks."""
        std = values.std(0)
        return cls(values.mean(0), std, 1.96 * std / math.sqrt(len(values)))


def result_table(result: TestResult, config: Config, columns: list[Column]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of a meta-test, a row a column of what was measured."""
    measure, scale, unit = ("accuracy", 100, " %") if config.classification else ("mean squared error", 1, "")
    rows = [
        [column.label, f"{mean * scale:.4g}{unit}", f"{std * scale:.3g}", f"± {ci95 * scale:.3g}"]
        for column, mean, std, ci95 in zip(columns, *result, strict=True)
    ]
    return ["", measure, "std", "95 % interval"], rows


def statistics_note(config: Config) -> str:
    """Of what a test's batch-norm takes its statistics; "" if there is none."""
    if config.norm != "batch_norm":
        return ""
    together = "query batch" if config.adapts else "support and query set together"
    return f"batch-norm statistics: {f'{together} (transductive)' if config.transductive else 'support set'}"


# A test's own values of these stand in the name of its results, where they are not the run's or the default.
NAMED_IN_RESULTS = (
    *("num_classes", "query_size", "seed", "omniglot_resize", "adapt", "test_head"),
    *("eval_inner_iters", "eval_inner_batch", "test_num_updates", "test_tasks"),
)


def results_name(config: Config, run: Config) -> str:
    """The official name of a meta-test's results; behind it whatever is not the official case, a test on the test set.

    Args:
        config: of the test.
        run: of the run that is tested.
    """
    rate = f"_stepsize{config.update_lr}" if config.uses("update_lr") else ""
    split = "" if config.test_set else "_val"
    mode = "" if config.bn_mode == "transductive" else f"_bn{config.bn_mode}"
    of_call = names_of("call")  # a test does not inherit these
    usual = {name: getattr(Config if name in of_call else run, name) for name in NAMED_IN_RESULTS}
    other = [name for name, value in usual.items() if getattr(config, name) != value]
    own = "".join(f"_{name.removeprefix('test_').replace('_', '')}{getattr(config, name)}" for name in other)
    return f"test_ubs{config.update_batch_size}{rate}{split}{mode}{own}"


def results_file(folder: Path, config: Config, suffix: str) -> Path:
    """Where the results of a run's official meta-test stand."""
    return folder / (results_name(config.replace(test_set=True), config) + suffix)


def kept(folder: Path, name: str, checkpoint: str) -> None:
    """Renames the results of another checkpoint that stand under a name: nothing is lost."""
    before = {}
    with contextlib.suppress(UserError):
        before = read_json(folder / f"{name}.json")
    other = str(before.get("checkpoint", checkpoint))
    if other != checkpoint and "/" not in other:
        for suffix in (".csv", ".pkl", ".json"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder / (name + suffix), folder / f"{name}_{other}{suffix}")


def write_results(
    folder: Path,
    config: Config,
    run: Config,
    values: np.ndarray,
    result: TestResult,
    columns: list[Column],
    checkpoint: str,
    newest: bool = True,
) -> Path:
    """Writes the official .csv and .pkl of a meta-test, and a .json that explains itself.

    Args:
        run: the setting of the run that was tested.
        newest: whether the checkpoint is the run's newest.

    Returns:
        The path of the .csv.
    """
    name = results_name(config, run) + ("" if newest else f"_{checkpoint}")
    kept(folder, name, checkpoint)
    table = folder / f"{name}.csv"
    with replacing(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column.key for column in columns])
        for row in result:
            writer.writerow([float(value) for value in row])
    with replacing(folder / f"{name}.pkl") as temporary:
        temporary.write_bytes(pickle.dumps({"mses": values}))
    write_json(
        folder / f"{name}.json",
        {
            "checkpoint": checkpoint,
            "split": "test" if config.test_set else "val",
            "tasks": len(values),
            "seed": config.seed,
            "measure": "accuracy" if config.classification else "mean squared error",
            "bn_mode": config.bn_mode if config.norm == "batch_norm" else None,
            "columns": [column.label for column in columns],
            "mean": result.mean.tolist(),
            "std": result.std.tolist(),
            "ci95": result.ci95.tolist(),
            "config": config.to_dict(),
        },
    )
    return table
