"""Runs beside one another: tested on the same tasks, so that differences are told apart from luck.

    print(maml.compare(["logs/maml", "logs/anil"]))

`python -m maml.compare` does the same. Runs that differ in nothing but their seed are one row.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml.algorithms import ensemble
from maml.config import Config, names_of
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.learner import learner_of, refuse_own
from maml.terminal import aligned, table
from maml.training.evaluation import Evaluator, TestResult
from maml.training.runs import RUN_FILE, find_run, run_folders
from maml.training.summaries import CURVE, Point, read_curve

# 97.5 % quantiles of Student's t by degrees of freedom, from 1 on; beyond, 1.96 + 2.5 / df is as close.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# So many times the usual time between two summaries, and at least a minute: a training was stopped in between.
PAUSE, SHORTEST_PAUSE = 20, 60.0


class Run(NamedTuple):
    """A tested run.

    values: of every task after adaptation, [tasks]: accuracies, or losses.
    before: the same before adaptation; None where nothing is adapted.
    measured: what `values` are.
    seconds: of its training, pauses left out; nan where it has no TensorBoard files.
    curve: of its validations.
    """

    folder: Path
    config: Config
    iteration: int
    parameters: int
    values: np.ndarray
    before: np.ndarray | None
    measured: str
    seconds: float
    curve: list[Point]


class Row(NamedTuple):
    """Runs of one setting, and what was measured of them.

    runs: one for each seed.
    ci_tasks: half width of the 95 % interval over the tasks, of the runs' mean.
    ci_runs: over the runs, by Student's t; nan for one run.
    difference, ci_difference: to the first row, task by task.
    """

    name: str
    runs: list[Run]
    mean: float
    ci_tasks: float
    ci_runs: float
    difference: float
    ci_difference: float


class Comparison(NamedTuple):
    """What `compare` found; printed, it is a table.

    tasks: how many every run was tested on.
    """

    rows: list[Row]
    tasks: int

    def __str__(self) -> str:
        """The table in plain lines, a line a setting, and what it says."""
        return f"{aligned(*self.cells())}\n{self.note}"

    @property
    def note(self) -> str:
        """What the numbers are of."""
        return f"{self.tasks} tasks, the same for all; differences are to the first row, task by task"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table's header and its rows."""
        accuracy = self.rows[0].runs[0].config.classification
        scale, unit = (100, "accuracy, %") if accuracy else (1, "mean squared error")
        header = [unit, "before", "after", "± over tasks", "± over runs", "difference", "iterations"]
        lines = []
        for row in self.rows:
            befores = [run.before.mean() for run in row.runs if run.before is not None]
            first = row is self.rows[0]
            lines.append(
                [
                    row.name + (f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else ""),
                    f"{scale * np.mean(befores):.4g}" if befores else "",
                    f"{scale * row.mean:.4g}",
                    f"{scale * row.ci_tasks:.3g}",
                    "" if math.isnan(row.ci_runs) else f"{scale * row.ci_runs:.3g}",
                    "" if first else f"{scale * row.difference:+.3g} ± {scale * row.ci_difference:.2g}",
                    ", ".join(str(count) for count in sorted({run.iteration for run in row.runs})),
                    str(row.runs[0].parameters),
                    _duration(float(np.mean([run.seconds for run in row.runs]))),
                ]
            )
        return [*header, "parameters", "time"], lines

    def figure(self, path: str | os.PathLike) -> None:
        """Draws the validation curves, a line a setting with the range of its seeds.

        Raises:
            UserError: there are no curves, or no matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UserError("a figure needs matplotlib: pip install matplotlib") from error
        drawing = Figure(figsize=(7, 4), layout="constrained")
        axes, drawn = drawing.subplots(), False
        for row in self.rows:
            curves = [np.array(run.curve) for run in row.runs if run.curve]
            if not curves:
                continue
            drawn, longest = True, max(curves, key=len)[:, 0]
            values = np.array([np.interp(longest, curve[:, 0], curve[:, 2], right=np.nan) for curve in curves])
            [line] = axes.plot(longest, np.nanmean(values, 0), label=row.name)
            if len(curves) > 1:
                axes.fill_between(
                    longest, np.nanmin(values, 0), np.nanmax(values, 0), alpha=0.2, color=line.get_color()
                )
        if not drawn:
            raise UserError("none of these runs has validations in TensorBoard's files (--log, --val_tasks)")
        accuracy = self.rows[0].runs[0].config.classification
        axes.set(xlabel="iterations", ylabel=f"validation {'accuracy' if accuracy else 'loss'}")
        axes.legend()
        drawing.savefig(path)


def compare(
    logdirs: str | os.PathLike | Sequence[str | os.PathLike],
    tasks: int = 600,
    test_set: bool = True,
    seed: int = 0,
    **flags: Any,
) -> Comparison:
    """Tests runs on the same tasks.

    Args:
        logdirs: folders of runs, or of folders of runs: all in them; or one such folder.
        tasks: of the test set, or else of the validation set.
        seed: of the tasks.
        flags: of a test, for all runs: `test_checkpoint="best"`, `bn_mode="support"`, ….

    Raises:
        UserError: there are no runs, or they cannot be tested on the same tasks.
    """
    folders = _folders([logdirs] if isinstance(logdirs, str | os.PathLike) else logdirs)
    given = flags | {"test_tasks": tasks, "test_set": test_set, "seed": seed}
    same: dict[str, Any] = {}
    return Comparison(_rows([_tested(folder, given, same) for folder in folders]), tasks)


def _folders(logdirs: Iterable[str | os.PathLike]) -> list[Path]:
    found: list[Path] = []
    for given in logdirs:
        root = Path(given).expanduser()
        folders = sorted(run_folders(root))
        if not folders:
            raise UserError(f"{root}: there is no run in it (looked for {RUN_FILE})")
        found += [folder for folder in folders if folder not in found]
    if not found:
        raise UserError("no folders of runs were named; name at least one")
    return found


def _tested(folder: Path, given: dict[str, Any], tasks: dict[str, Any]) -> Run:
    """A run, tested; `tasks` holds what the first run's tasks are, and is filled in by it."""
    _, config = find_run(given | {"logdir": str(folder)})
    refuse_own(config, folder)
    learner = learner_of(config, folder)
    model, split = learner.model, "test" if config.test_set else "val"
    data = DataGenerator(config, (split,))
    _check_same_tasks(folder, config, data.fingerprint, tasks)
    measures = Evaluator(model, data).tasks(learner.weights, split, config.test_tasks, config.evaluation_updates)
    values = measures["accuracy" if config.classification else "loss"]
    after = min(model.reported[-1], values.shape[1] - 1)
    learned = [weight for name, weight in ensemble.best(learner.weights).items() if not name.startswith("adam/")]
    tag = CURVE.format(name="accuracy" if config.classification else "loss")
    return Run(
        folder,
        config,
        int("".join(filter(str.isdigit, learner.checkpoint.name.rpartition("_")[2]))),
        sum(math.prod(weight.shape) for weight in learned),
        values[:, after],
        values[:, 0] if after else None,
        model.columns(config.evaluation_updates)[after].label,
        _seconds(read_curve(folder / "train", tag)),
        read_curve(folder / "val", tag),
    )


def _check_same_tasks(folder: Path, config: Config, content: dict[str, str], tasks: dict[str, Any]) -> None:
    names = ("datasource", "conventions", "omniglot_resize", "image_size", "channels")
    found = {f"--{name}": getattr(config, name) for name in names}
    found |= dict(zip(("classes", "shots", "queries"), config.task_size("test"), strict=True))
    found |= {"images": content}
    for name, value in found.items():
        if tasks.setdefault(name, value) != value:
            what = "other images" if name == "images" else f"{name} {value}, and the first run {tasks[name]}"
            raise UserError(f"{folder}: has {what}: only runs on the same tasks can be compared")


def _rows(runs: list[Run]) -> list[Row]:
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        setting = {name: getattr(run.config, name) for name in names_of("network", "training") if name != "seed"}
        groups.setdefault(tuple(setting.items()), []).append(run)
    settings = [dict(setting) for setting in groups]
    rows: list[Row] = []
    for setting, members in zip(settings, groups.values(), strict=True):
        different = [name for name in setting if any(other[name] != setting[name] for other in settings)]
        told = [str(setting["algorithm"]), *(f"{n}={setting[n]}" for n in different if n != "algorithm")]
        values = np.mean([run.values for run in members], 0)
        means = [run.values.mean() for run in members]
        first = np.mean([run.values for run in rows[0].runs], 0) if rows else values
        rows.append(
            Row(
                " ".join(told),
                members,
                float(values.mean()),
                float(TestResult.of(values).ci95),
                _student(len(means) - 1) * float(np.std(means, ddof=1)) / math.sqrt(len(means))
                if len(means) > 1
                else math.nan,
                float((values - first).mean()),
                float(TestResult.of(values - first).ci95),
            )
        )
    return rows


def _student(freedom: int) -> float:
    return STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.5 / freedom


def _seconds(points: list[Point]) -> float:
    """Seconds of a training from its summaries; pauses are left out."""
    gaps = np.diff([point.time for point in points])
    if not len(gaps):
        return math.nan
    return float(gaps[gaps < max(SHORTEST_PAUSE, PAUSE * np.quantile(gaps, 0.95))].sum())


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def main() -> int:
    """Prints the table; bad input ends with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m maml.compare", description="Prints runs beside one another, tested on the same tasks."
    )
    parser.add_argument("logdirs", nargs="+", help="folders of runs, or of folders of runs")
    parser.add_argument("--tasks", type=int, default=600, help="of the test set")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    parser.add_argument("--test_checkpoint", choices=("latest", "best", "ensemble"), default="latest")
    parser.add_argument("--data_dir", default="", help="where the images are, if they moved")
    parser.add_argument("--figure", default="", help="draw the validation curves into this file")
    args = parser.parse_args()
    flags = {"test_checkpoint": args.test_checkpoint} | ({"data_dir": args.data_dir} if args.data_dir else {})
    try:
        found = compare(args.logdirs, args.tasks, seed=args.seed, **flags)
        print(table(*found.cells()), found.note, sep="\n")
        if args.figure:
            found.figure(args.figure)
            print(f"Drawn: {args.figure}")
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        return 130
    return 0
