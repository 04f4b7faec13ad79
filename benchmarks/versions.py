"""Meta-updates of this version beside those of another one, by turns in one run.

  git worktree add ../old <commit>
  python -m benchmarks.versions ../old

The other version runs in its own folder with this Python, with the settings that its own `benchmarks.settings` has.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.formulations import OURS
from benchmarks.measure import Spread, by_turns, digits, machine, machine_lines, table
from benchmarks.settings import ALL, SETTINGS
from benchmarks.worker import Worker

HERE = Path(__file__).parent.parent
PRINT_SETTING = (
    "import json, sys; from benchmarks.settings import ALL; print(json.dumps(ALL[sys.argv[1]].config.to_dict()))"
)
HEADER = ["meta-update", "old, ms", "new, ms", "new / old", "first call, s", "peak memory, MiB"]


def start(setting: str, root: Path) -> Worker:
    """A process that computes one of `ALL`'s meta-updates with the version in the folder `root`."""
    if root == HERE:
        return Worker(OURS, ALL[setting].config)
    command = [sys.executable, "-c", PRINT_SETTING, setting]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return Worker(OURS, json.loads(printed), root=root)


def compare(setting: str, old: Path, repetitions: int, seconds: float) -> list[str]:
    """A row of the table; the ratio is the median of the repetitions' ratios."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(contextlib.closing(start(setting, root))) for root in (old, HERE)]
        runs = dict(zip(("old", "new"), (worker.run for worker in workers), strict=True))
        times = by_turns(runs, repetitions, seconds)
    per_update = [np.array(times[name]) / worker.updates for name, worker in zip(runs, workers, strict=True)]
    return [
        ALL[setting].title,
        *(str(Spread.of(1000 * values)) for values in per_update),
        digits(float(np.median(per_update[1] / per_update[0]))),
        " → ".join(digits(worker.first["first_call_s"]) for worker in workers),
        " → ".join(f"{worker.first['memory_peak'] / 2**20:.0f}" for worker in workers),
    ]


def main() -> None:
    """Measures and prints a Markdown table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the other version")
    parser.add_argument("--settings", nargs="+", choices=list(ALL), default=list(SETTINGS), help="default: all but toy")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=40, help="of a row, after which its repetitions end")
    args = parser.parse_args()
    if not (args.old / "benchmarks" / "worker.py").is_file():
        raise SystemExit(
            f"{args.old}: holds no version of this project; make one with git worktree add {args.old} COMMIT"
        )
    print(machine_lines(machine()), table(HEADER, []), sep="\n\n", end="", flush=True)
    for setting in args.settings:
        row = compare(setting, args.old.resolve(), args.repetitions, args.seconds)
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
