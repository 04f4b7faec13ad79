"""How the cost of a meta-update grows with tasks, inner steps, classes and filters.

  python -m benchmarks.growth
  python -m benchmarks.growth --plot        also docs/figures/growth.png (needs matplotlib)
  python -m benchmarks.growth --plot_only   only that, from what was measured before

One factor at a time is changed from 5-way 1-shot Omniglot (32 tasks, 1 step, 64 filters). Writes
benchmarks/results/growth.md and .json after every point.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.formulations import FIRST_ORDER, OURS, PLAIN
from benchmarks.measure import Spread, by_turns, count, digits, machine, machine_lines, table, write_report
from benchmarks.settings import SETTINGS
from benchmarks.worker import Worker
from maml.config import Config

FACTORS = {
    "meta_batch_size": (1, 4, 16, 64),
    "num_updates": (1, 2, 5, 10),
    "num_classes": (5, 20),
    "num_filters": (16, 32, 64),
}
LABELS = {
    "meta_batch_size": "tasks",
    "num_updates": "inner steps",
    "num_classes": "way",
    "num_filters": "filters",
}
COMPARED = (PLAIN, OURS, FIRST_ORDER)
SECONDS = 8  # of repetitions of a point, after which they end
RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "growth.png"


def measure(config: Config, repetitions: int) -> dict[str, dict[str, float]]:
    """Quartiles of the seconds of a meta-update in every formulation."""
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(contextlib.closing(Worker(name, config))) for name in COMPARED}
        times = by_turns({name: worker.run for name, worker in workers.items()}, repetitions, SECONDS)
    return {name: Spread.of(values)._asdict() for name, values in times.items()}


def report(values: dict[str, Any]) -> str:
    """The Markdown of the points so far."""
    rows = []
    for factor, points in values["factors"].items():
        for point in points:
            spreads = [Spread(*(1000 * value for value in point[name].values())) for name in (PLAIN, OURS, FIRST_ORDER)]
            ratio = digits(spreads[0].median / spreads[1].median)
            rows.append(
                [f"{LABELS[factor]} {point['value']}", str(spreads[0]), str(spreads[1]), ratio, str(spreads[2])]
            )
    header = ["", "official structure, ms", "ours, ms", "official / ours", "ours, first order, ms"]
    return "\n".join(
        [
            "# How the cost grows\n",
            machine_lines(values["machine"]) + "\n",
            "5-way 1-shot Omniglot, 32 tasks, 1 inner step, 64 filters, one factor changed at a time; milliseconds\n"
            "of a meta-update, medians and quartiles over repetitions that take turns, each formulation in a process\n"
            "of its own.\n",
            table(header, rows),
        ]
    )


def plot(values: dict[str, Any], path: Path) -> None:
    """Draws a panel for each factor, both axes logarithmic.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {PLAIN: "official structure", OURS: "ours", FIRST_ORDER: "ours, first order"}
    looks = {PLAIN: ("#b2182b", "s"), OURS: ("#2166ac", "o"), FIRST_ORDER: ("#67a9cf", "^")}
    figure, panels = pyplot.subplots(1, len(values["factors"]), figsize=(12, 3.4), sharey=True, squeeze=False)
    for panel, (factor, points) in zip(panels[0], values["factors"].items(), strict=True):
        x = [point["value"] for point in points]
        for name, title in titles.items():
            y = [1000 * point[name]["median"] for point in points]
            panel.plot(x, y, color=looks[name][0], marker=looks[name][1], label=title)
        panel.set(xscale="log", yscale="log", xlabel=LABELS[factor], xticks=x, xticklabels=x)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("meta-update, ms")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=count, default=11, help=f"at most; they end after {SECONDS} s a point")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of growth.md and growth.json")
    parser.add_argument("--plot", action="store_true", help=f"also draw {FIGURE.name}")
    parser.add_argument("--plot_only", action="store_true", help="only draw what is in growth.json already")
    options = parser.parse_args(arguments)
    if (options.plot or options.plot_only) and importlib.util.find_spec("matplotlib") is None:
        print("growth: a plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    if options.plot_only:
        plot(json.loads((options.output / "growth.json").read_text()), FIGURE)
        print(f"Drawn: {FIGURE}")
        return 0

    base, begin = SETTINGS["omniglot_5w1s"].config, time.perf_counter()
    values: dict[str, Any] = {"machine": machine(), "factors": {}}
    print(machine_lines(values["machine"]))
    measured: dict[Config, dict] = {}  # the base is a point of several factors
    for factor, points in FACTORS.items():
        values["factors"][factor] = []
        for point in points:
            config = base.replace(**{factor: point})
            if config not in measured:
                measured[config] = measure(config, options.repetitions)
            found = measured[config]
            values["factors"][factor].append({"value": point, **found})
            times = ", ".join(f"{name} {digits(1000 * value['median'])} ms" for name, value in found.items())
            print(f"[{time.perf_counter() - begin:4.0f} s] {LABELS[factor]} {point}: {times}", flush=True)
            write_report(options.output, "growth", report(values), values)
    if options.plot:
        plot(values, FIGURE)
        print(f"Drawn: {FIGURE}")
    print(f"Written to {options.output / 'growth.md'} and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
