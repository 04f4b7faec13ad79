"""Trains and tests MAML and other algorithms on Omniglot, 1-shot, each for the same time.

  python -m benchmarks.compare                         two minutes each
  python -m benchmarks.compare --seconds=900           a quarter of an hour each
  python -m benchmarks.compare --num_classes=20        20-way
  python -m benchmarks.compare protonet reptile        some of them

Writes compare.md, compare.json and figures/compare.png into docs/, of 20-way compare_20way. The time is that of the
whole command: imports, data, compilation, summaries and validations included.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import BLUE, GRAY, GREEN, ORANGE, ROOT, run_main, save, subplots
from benchmarks.measure import count, machine, machine_lines, table, write_report
from maml import algorithms
from maml.errors import UserError
from maml.training.evaluation import results_file
from maml.training.runs import find_run
from maml.training.summaries import CURVE, read_curve

FOREVER = 1_000_000  # iterations: the time ends a training, not their number
INTERRUPTED = 130
EVERYONE: dict[str, Any] = {"datasource": "omniglot", "update_batch_size": 1}
MAML_FLAGS = {"algorithm": "maml", "meta_batch_size": 32, "update_lr": 0.4, "num_updates": 1}
RUNS: dict[str, dict[str, Any]] = {
    "MAML": MAML_FLAGS | {"val_interval": 100},
    "first-order MAML": MAML_FLAGS | {"stop_grad": True, "val_interval": 100},
    "ANIL": {"algorithm": "anil", "meta_batch_size": 32, "update_lr": 0.1, "num_updates": 5, "val_interval": 100},
    "Meta-SGD": {"algorithm": "metasgd", "meta_batch_size": 32, "val_interval": 100},
    # On its own split, untouched in tests; MAML on the same is --conventions=maml++.
    "MAML++": {"algorithm": "maml++", "val_interval": 50, "val_tasks": 100},
    # Its meta-step would fall over more iterations than the time has.
    "Reptile": {"algorithm": "reptile", "meta_step": 0.5, "meta_step_final": 0.5, "val_interval": 200},
    "prototypical networks": {"algorithm": "protonet", "val_interval": 25},
    "matching networks, l2": {"algorithm": "matching", "distance": "l2", "val_interval": 25},
    "matching networks, cosine": {"algorithm": "matching", "distance": "cosine", "val_interval": 25},
    "matching networks, cosine, learned scale": {
        **{"algorithm": "matching", "distance": "cosine", "attention_scale": 0.0, "val_interval": 25}
    },
}
# What is published for 20-way, where it is something else.
MAML_OF_20 = {"meta_batch_size": 16, "update_lr": 0.1, "num_updates": 5, "val_interval": 50}
RUNS_OF_20: dict[str, dict[str, Any]] = {
    "MAML": MAML_OF_20,
    "first-order MAML": MAML_OF_20,
    "ANIL": MAML_OF_20,
    "Meta-SGD": {"meta_batch_size": 16, "val_interval": 50},
    "Reptile": {"update_lr": 0.0005, "inner_iters": 10, "inner_batch": 20, "eval_inner_batch": 10},
}
# Of whole trainings, 5-way and 20-way, by the papers that docs/algorithms.md names; "" where none was found.
PUBLISHED = {
    "MAML": ("98.7 ± 0.4", "95.8 ± 0.3"),
    "first-order MAML": ("98.3 ± 0.5", "89.4 ± 0.5"),
    "ANIL": ("", "96.2 ± 0.5"),
    "Meta-SGD": ("99.53 ± 0.26", ""),
    "MAML++": ("99.47", ""),
    "Reptile": ("97.68", "89.43"),
    "prototypical networks": ("98.8", "96.0"),
    "matching networks, cosine": ("98.1", "93.8"),
}
PURPLE, BLACK, SKY = "#CC79A7", "#000000", "#56B4E9"
BROWN, YELLOW, RED = "#8C564B", "#F0E442", "#D62728"
COLORS = [BLUE, SKY, BROWN, YELLOW, RED, ORANGE, GREEN, GRAY, PURPLE, BLACK]


def train_for(seconds: float, flags: dict[str, Any]) -> tuple[float, float]:
    """Trains as main.py does, until the time is up or the training ends.

    Returns:
        When it began, in seconds since 1970, and the seconds that it took.

    Raises:
        UserError: it failed; it has said why.
    """
    command = ["main.py", *(f"--{name}={value}" for name, value in flags.items())]
    print("python " + " ".join(command), flush=True)
    begin = time.time()
    with subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:]]) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            code = process.wait()
    if code not in (0, INTERRUPTED):
        raise UserError(f"this command failed: python {' '.join(command)}")
    return begin, time.time() - begin


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and tests one of `RUNS`; returns its row of the table and its curve."""
    own = RUNS[name] | (RUNS_OF_20.get(name, {}) if options.num_classes == 20 else {})
    logdir = f"{options.logs}/{name.replace(', ', '-').replace(' ', '_')}"
    flags = EVERYONE | own | {"num_classes": options.num_classes, "logdir": logdir}
    flags |= {"data_dir": options.data_dir} if options.data_dir else {}
    begin, seconds = train_for(options.seconds, {"metatrain_iterations": FOREVER, "resume": False} | flags)
    run_main(flags | {"train": False, "test_set": True})
    folder, config = find_run(flags | {"train": False, "test_set": True})
    results = json.loads(results_file(folder, config, ".json").read_text())
    model = algorithms.build(config)
    column = model.reported[-1]
    return {
        "flags": own,
        "seconds": seconds,
        "iterations": int(results["checkpoint"].removeprefix("model")),
        "accuracy": results["mean"][column],
        "ci95": results["ci95"][column],
        "measured": results["columns"][column],
        "tasks": results["tasks"],
        "parameters": sum(
            math.prod(weight.shape)
            for name, weight in model.init_state().weights.items()
            if not name.startswith("adam/")  # the inner optimizer's, in Reptile
        ),
        "curve": curve(folder, begin),
    }


def curve(folder: Path, begin: float) -> list[tuple[float, float]]:
    """(seconds since `begin`, accuracy) of every validation of a run."""
    points = read_curve(folder / "val", CURVE.format(name="accuracy"))
    return [(point.time - begin, point.value) for point in points]


def report(
    rows: dict[str, dict[str, Any]], where: dict[str, Any], seconds: int, classes: int, chosen: Sequence[str] = ()
) -> str:
    """The table in Markdown."""
    header = ["algorithm", "accuracy, %", "measured on", "iterations", "time, s", "parameters", "published, %"]
    lines = [
        [
            name,
            f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}",
            row["measured"],
            f"{row['iterations']:,}",
            f"{row['seconds']:.0f}",
            f"{row['parameters']:,}",
            PUBLISHED.get(name, ("", ""))[classes == 20],
        ]
        for name, row in rows.items()
    ]
    tasks = next(iter(rows.values()))["tasks"]
    return (
        f"# MAML and other algorithms, Omniglot {classes}-way 1-shot, {seconds} s each\n\n"
        f"`{' '.join(['python -m benchmarks.compare', *chosen])} --num_classes={classes} --seconds={seconds}`. "
        f"Accuracy on {tasks} test tasks ± the 95 % interval over them. "
        "The time is that of the whole command, validations included; what is published took all the time it took.\n\n"
        f"{table(header, lines)}\n{machine_lines(where)}\n"
    )


def draw(rows: dict[str, dict[str, Any]], path: Path, classes: int) -> None:
    """Validation accuracy over wall-clock time; on the right, matching networks' plain and scaled cosine."""
    both = any("cosine" in name for name in rows)
    figure, axes = subplots(1, 1 + both, (11 if both else 6, 4.2))
    panels = list(np.ravel(axes))
    panels[0].set(title=f"Omniglot, {classes}-way 1-shot", ylabel="accuracy on 100 validation tasks, %")
    if both:
        panels[1].set(title="Matching networks: the scale of the attention")
    colors = dict(zip(RUNS, COLORS, strict=False))
    for name, row in rows.items():
        shown = panels[1:] if "cosine" in name else panels if name.startswith("matching") else panels[:1]
        for panel in shown:
            panel.plot(
                [seconds for seconds, _ in row["curve"]],
                [100 * accuracy for _, accuracy in row["curve"]],
                color=colors[name],
                marker="o",
                markersize=3,
                label=name,
            )
    for panel in panels:
        panel.set(xlabel="seconds since the command began", xlim=(0, None))
        panel.legend(loc="best", frameon=False)
    save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Trains, tests, writes and draws; returns the exit code."""
    short = {name: [run for run, flags in RUNS.items() if flags["algorithm"] == name] for name in algorithms.NAMES}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="*", choices=[*short, []], help="which (default: all)")
    parser.add_argument("--seconds", type=count, default=120, help="for each training")
    parser.add_argument("--num_classes", type=int, choices=[5, 20], default=5, help="of a task")
    parser.add_argument("--logs", default="logs/compare", help="folder of the runs' --logdir folders")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the table and the figure")
    parser.add_argument("--data_dir", default="", help="folder of Omniglot's images (default data/omniglot)")
    options = parser.parse_args(arguments)
    names = [run for name in options.algorithms or short for run in short[name]]
    where, rows, classes = machine(), {}, options.num_classes
    stem = "compare" if classes == 5 else f"compare_{classes}way"
    try:
        for name in names:
            rows[name] = measure(name, options)
            values = {"machine": where, "seconds": options.seconds, "runs": rows}
            write_report(
                options.output, stem, report(rows, where, options.seconds, classes, options.algorithms), values
            )
            draw(rows, options.output / "figures" / f"{stem}.png", classes)
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
