"""Tests a trained run again with one thing changed at a time: what its accuracy depends on.

  python -m benchmarks.variations logs/omniglot20way
  python -m benchmarks.variations logs/omniglot20way --more=3000 --meta_lr 0.001 0.0001

Every variation sees the same validation and test tasks, and is measured after the inner steps of the training unless it
says otherwise. Nothing in the run's folder changes.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from benchmarks.measure import count, machine, machine_lines, table
from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.models.protocol import Weights
from maml.parallel import set_up_threads
from maml.training import checkpoints
from maml.training.checkpoints import Checkpoint
from maml.training.evaluation import Evaluator, TestResult
from maml.training.runs import find_run
from maml.training.updates import make_update

SPLITS = ("val", "test")
PER_CALL = 10  # iterations


class Variation(NamedTuple):
    """What is tested: weights, on tasks of a setting, after so many inner steps."""

    title: str
    weights: Weights
    config: Config
    steps: int


class NotTurned(Config):
    """A setting whose classes stand upright, in training and in tests."""

    def turns_classes(self, split: str) -> bool:
        """No."""
        return False


def variations(folder: Path, config: Config) -> Iterator[Variation]:
    """The run's checkpoints, alone and averaged, more inner steps, and classes that are not turned."""
    model, steps = algorithms.build(config), config.num_updates

    def weights_of(checkpoint: Checkpoint) -> Weights:
        return checkpoints.restore(checkpoint, model)[0].weights

    last = checkpoints.choose(folder, "latest", -1)
    weights = weights_of(last)
    yield Variation(f"last checkpoint, {last.iteration:,}", weights, config, steps)
    for best in checkpoints.best_last(folder)[-1:]:
        yield Variation(f"best in validation, {best.iteration:,}", weights_of(best), config, steps)
    several = checkpoints.list_checkpoints(folder)
    if len(several) > 1:
        title = f"mean of the weights of the last {len(several)} checkpoints, from {several[0].iteration:,}"
        yield Variation(title, mean_of([weights_of(each) for each in several]), config, steps)
    yield Variation(f"last checkpoint, {2 * steps} inner steps", weights, config, 2 * steps)
    if config.turns_classes("test"):
        upright = NotTurned(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
        yield Variation("last checkpoint, classes not turned in the test", weights, upright, steps)


def mean_of(several: list[Weights]) -> Weights:
    """The mean of each weight."""
    return {name: tf.add_n([weights[name] for weights in several]) / len(several) for name in several[0]}


def trained_on(folder: Path, config: Config, iterations: int, meta_lr: float) -> Variation:
    """The last checkpoint after more iterations with a meta learning rate, on the tasks that would come next.

    Raises:
        UserError: an update is not finite.
    """
    model = algorithms.build(config.replace(meta_lr=meta_lr))
    last = checkpoints.choose(folder, "latest", -1)
    state, _ = checkpoints.restore(last, model)
    update, end = make_update(model, DataGenerator(config, ("train",))), last.iteration + iterations
    for first in range(last.iteration, end, PER_CALL):
        updated = update(state, tf.constant(first), tf.constant(min(PER_CALL, end - first)))
        if not updated.finite:
            raise UserError(f"--meta_lr {meta_lr:g}: not finite after iteration {first}; choose a smaller one")
        state = updated.state
    return Variation(f"{iterations:,} more iterations with β = {meta_lr:g}", state.weights, config, config.num_updates)


@functools.cache
def evaluator_of(config: Config) -> Evaluator:
    """What measures a setting's tasks; it is traced only once for several weights."""
    return Evaluator(algorithms.build(config), DataGenerator(config, SPLITS))


def row(variation: Variation) -> list[str]:
    """Accuracies in % on each split, with the half widths of their 95 % intervals."""
    cells = [variation.title]
    for split in SPLITS:
        evaluator, tasks = evaluator_of(variation.config), variation.config.test_tasks
        measures = evaluator.tasks(variation.weights, split, tasks, variation.steps)
        found = TestResult.of(100 * measures["accuracy"][:, -1])
        cells.append(f"{found.mean:.2f} ± {found.ci95:.2f}")
    return cells


def main(arguments: list[str] | None = None) -> int:
    """Prints a Markdown table, row by row; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variations", description=__doc__.splitlines()[0])
    parser.add_argument("logdir", help="folder of the run")
    parser.add_argument("--tasks", type=count, default=600, help="of each split")
    parser.add_argument("--data_dir", default="", help="folder of the images, if not the run's")
    parser.add_argument("--more", type=count, help="iterations that the last checkpoint is trained on for")
    parser.add_argument(
        "--meta_lr", type=float, nargs="+", default=[], help="with --more: meta learning rates, by default the run's"
    )
    options = parser.parse_args(arguments)
    if options.meta_lr and not options.more:
        parser.error("--meta_lr is for --more")
    flags: dict[str, Any] = {"logdir": options.logdir, "train": False, "test_tasks": options.tasks}
    flags |= {"data_dir": options.data_dir} if options.data_dir else {}
    try:
        folder, config = find_run(flags)
        if not config.adapts or not config.classification:
            raise UserError(
                f"{folder}: is of {config.algorithm} on {config.datasource}; needed MAML's family on images"
            )
        set_up_threads(config)
        lines = table(["", *(f"{split}, %" for split in SPLITS)], [])
        print(machine_lines(machine()), lines, sep="\n\n", end="", flush=True)
        for variation in variations(folder, config):
            print(f"| {' | '.join(row(variation))} |", flush=True)
        for meta_lr in (options.meta_lr or [config.meta_lr]) if options.more else []:
            print(f"| {' | '.join(row(trained_on(folder, config, options.more, meta_lr)))} |", flush=True)
    except UserError as error:
        print(f"variations: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
