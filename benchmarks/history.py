"""How accurate a run was on its way: validates every checkpoint in its folder, and draws that over hours of training.

  python -m benchmarks.history logs/miniimagenet1shot --output=history
  python -m benchmarks.history logs/miniimagenet1shot --output=history --level=RELEASED --update_ms 650 1700

Validations of a training are of 100 tasks, and a machine that is lost takes them along; checkpoints that were kept are
validated here on as many tasks as one likes. What was validated before is read from the table and not done again.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import BLUE, GRAY, ORANGE, save, subplots
from benchmarks.measure import count
from maml import algorithms
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.files import write_text
from maml.training import checkpoints
from maml.training.evaluation import Evaluator, TestResult
from maml.training.runs import find_run


class Point(NamedTuple):
    """A checkpoint's accuracy after the steps it was trained for, in %, with the half width of its 95 % interval.

    tasks: how many it was validated on.
    """

    iteration: int
    tasks: int
    accuracy: float
    ci95: float


# What names the folder of a run of the official code, which keeps no record of its flags.
NAMING = (
    *("datasource", "num_classes", "meta_batch_size", "update_batch_size", "num_updates", "update_lr"),
    *("num_filters", "max_pool", "norm"),
)


def run_in(logdir: str, like: Config | None = None, **flags: Any) -> tuple[Path, Config]:
    """The run in a folder, to be tested; of the official code, if need be, with the setting of the run `like`."""
    known = {name: getattr(like, name) for name in NAMING} if like else {}
    return find_run(flags | known | {"logdir": logdir, "train": False})


def validations(folder: Path, config: Config, table: Path) -> list[Point]:
    """Validates the checkpoints of a run that are not in the table yet, and adds them to it.

    Raises:
        UserError: it does not classify, has no checkpoints, or the table is of another number of tasks.
    """
    if not config.classification:
        raise UserError(f"{folder}: a run on {config.datasource} has no accuracy")
    config = config.replace(test_num_updates=config.num_updates)
    checkpoints.choose(folder, "latest", -1)
    known = read_table(table)
    if other := {point.tasks for point in known.values()} - {config.test_tasks}:
        raise UserError(f"{table}: is of {other.pop()} tasks, not {config.test_tasks}; name another --output")
    left = [each.iteration for each in checkpoints.list_checkpoints(folder) if each.iteration not in known]
    if not left:
        return sorted(known.values())
    table.parent.mkdir(parents=True, exist_ok=True)
    model = algorithms.build(config)
    evaluator = Evaluator(model, DataGenerator(config, ("val",)))
    for iteration in left:
        _, weights = checkpoints.restore_chosen(folder, config.replace(test_iter=iteration), model)
        measures = evaluator.tasks(weights, "val", config.test_tasks, config.evaluation_updates)
        found = TestResult.of(100 * measures["accuracy"][:, model.reported[-1]])
        point = Point(iteration, config.test_tasks, round(float(found.mean), 4), round(float(found.ci95), 4))
        known[iteration] = point
        print(f"iteration {iteration}: {point.accuracy:.2f} ± {point.ci95:.2f} %", flush=True)
        lines = [",".join(map(str, point)) for point in sorted(known.values())]
        write_text(table, "\n".join([",".join(Point._fields), *lines, ""]))
    return sorted(known.values())


def read_table(table: Path) -> dict[int, Point]:
    """What was validated before, by iteration."""
    if not table.exists():
        return {}
    with open(table, encoding="utf-8") as file:
        rows = [Point(int(a), int(b), float(c), float(d)) for a, b, c, d in list(csv.reader(file))[1:]]
    return {point.iteration: point for point in rows}


def draw(points: list[Point], update_ms: tuple[float, float], level: Point | None, config: Config, path: Path) -> None:
    """Accuracy over hours at our rate, and the same iterations at the official structure's.

    Args:
        points: of the run.
        update_ms: milliseconds of a meta-update, ours and the official structure's.
        level: another run's newest checkpoint, drawn as a line.
        config: the run's.
        path: of the PNG.
    """
    figure, [panel] = subplots(1, 1, (7, 4))
    ours, official = ([point.iteration * each / 3.6e6 for point in points] for each in update_ms)
    accuracy, ci95 = [point.accuracy for point in points], [point.ci95 for point in points]
    look: dict[str, Any] = {"color": ORANGE, "linestyle": "--", "linewidth": 1.2}
    panel.plot(official, accuracy, label="the same iterations at the official structure's rate", **look)
    panel.errorbar(ours, accuracy, ci95, color=BLUE, marker="o", markersize=4, capsize=2, linewidth=1.2, label="ours")
    if level:
        panel.axhline(level.accuracy, color=GRAY, linestyle=":", label="the checkpoint that the authors released")
    shots = config.update_batch_size
    panel.set(xlabel="hours of training", ylabel="accuracy on validation classes, %", xlim=(0, None))
    panel.set_title(f"{config.datasource}, {config.num_classes}-way {shots}-shot, {points[-1].iteration:,} iterations")
    panel.legend(loc="lower right", frameon=False)
    save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Validates and draws; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__.splitlines()[0])
    parser.add_argument("logdir", help="folder of the run")
    parser.add_argument("--tasks", type=count, default=600, help="of the validation set")
    parser.add_argument("--data_dir", default="", help="folder of the images, if not the run's")
    parser.add_argument("--level", default="", help="folder of a run whose newest checkpoint is drawn as a line")
    parser.add_argument("--update_ms", nargs=2, type=float, metavar=("OURS", "OFFICIAL"), help="draw, at these rates")
    parser.add_argument("--output", type=Path, required=True, help="path of .csv and .png, without the end")
    options = parser.parse_args(arguments)
    output, flags = options.output, {"test_tasks": options.tasks}
    flags |= {"data_dir": options.data_dir} if options.data_dir else {}
    try:
        folder, config = run_in(options.logdir, **flags)
        points, level = validations(folder, config, output.with_suffix(".csv")), None
        if options.level:
            table = output.with_name(f"{output.name}_level.csv")
            level = validations(*run_in(options.level, config, **flags), table)[-1]
        if options.update_ms:
            draw(points, options.update_ms, level, config, output.with_suffix(".png"))
    except UserError as error:
        print(f"history: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
