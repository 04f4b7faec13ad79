"""Meta-updates of MAML's family beside MAML's own, by turns in one run.

  python -m benchmarks.family

Each member and each trick of MAML++ is timed by itself, on the same network and tasks; a ratio of 1 is MAML's update.
"""

import argparse
import contextlib

import numpy as np

from benchmarks.formulations import EVERY_STEP, FAMILY, OURS, QUERY_PASS
from benchmarks.measure import Spread, by_turns, digits, machine, machine_lines, table
from benchmarks.settings import ALL, SETTINGS
from benchmarks.worker import Worker

FLOOR = "its floor, the further query passes alone"
COLUMNS = list(FAMILY)
COLUMNS.insert(COLUMNS.index(EVERY_STEP) + 1, FLOOR)


def compare(setting: str, repetitions: int, seconds: float) -> list[str]:
    """A row of the table: MAML's update in milliseconds, and the median ratio of every other to it."""
    config = ALL[setting].config
    names = [name for name, flags in FAMILY.items() if config.norm == "batch_norm" or "per_step_bn" not in flags]
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(contextlib.closing(Worker(name, config.to_dict())))
            for name in (OURS, *names, QUERY_PASS)
        }
        times = by_turns({name: worker.run for name, worker in workers.items()}, repetitions, seconds)
    per_update = {name: np.array(times[name]) / worker.updates for name, worker in workers.items()}
    ratios = {name: float(np.median(times / per_update[OURS])) for name, times in per_update.items()}
    ratios[FLOOR] = 1 + (config.num_updates - 1) * ratios[QUERY_PASS]
    shown = [digits(ratios[name]) if name in ratios else "" for name in COLUMNS]
    return [ALL[setting].title, str(Spread.of(1000 * per_update[OURS])), *shown]


def main() -> None:
    """Measures and prints a Markdown table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(ALL), default=list(SETTINGS), help="default: all but toy")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=120, help="of a row, after which its repetitions end")
    args = parser.parse_args()
    header = ["meta-update", "MAML, ms", *COLUMNS]
    print(machine_lines(machine()), table(header, []), sep="\n\n", end="", flush=True)
    for setting in args.settings:
        print(f"| {' | '.join(compare(setting, args.repetitions, args.seconds))} |", flush=True)


if __name__ == "__main__":
    main()
