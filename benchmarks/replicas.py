"""What it costs to divide a meta-update: one process, replicas within it, and processes, on the same cores, by turns.

  python -m benchmarks.replicas

Nothing can be gained on a machine whose cores one process fills: a ratio of 1 is a division that costs nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Spread, digits, machine, machine_lines, table
from benchmarks.settings import ALL, SETTINGS, random_data

WAYS = {"1 process": (1, ""), "2 replicas in it": (1, "cpu:2"), "2 processes": (2, "")}


def times(setting: str, devices: str, seconds: float) -> Iterator[float]:
    """Seconds an update, measured again whenever the caller asks; the number of updates of a call is the chief's."""
    import tensorflow as tf

    import maml
    from maml import algorithms
    from maml.devices import replicas
    from maml.parallel import set_up_threads
    from maml.training.updates import make_update

    chosen = ALL[setting]
    config = chosen.config
    set_up_threads(config)
    with maml.strategy(devices).scope():
        model, data = algorithms.build(config), random_data(config, chosen.classes, chosen.images)
        run, state = make_update(model, data), model.init_state()
        count = 1
        while True:
            begin = time.perf_counter()
            run(state, tf.constant(0), tf.constant(count)).loss.numpy()
            took = (time.perf_counter() - begin) / count
            yield took
            count = max(1, replicas.number_of_chief(int(seconds / took)))


def worker(setting: str, devices: str, repetitions: int, seconds: float) -> None:
    """Prints what was measured, a line a repetition; of several processes the chief does."""
    measured = times(setting, devices, seconds)
    next(measured), next(measured)  # compiles; finds how many updates fill the time
    found = [next(measured) for _ in range(repetitions)]
    if json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0) == 0:
        print("\n".join(map(str, found)), flush=True)


def compare(setting: str, repetitions: int, seconds: float) -> list[str]:
    """A row of the table: milliseconds of one process, and the median ratio of the others to it."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repetitions):
        for name, (processes, devices) in WAYS.items():
            found[name].append(float(np.median(started(setting, processes, devices, seconds))))
    base = np.array(found.pop("1 process"))
    ratios = [digits(float(np.median(np.array(values) / base))) for values in found.values()]
    return [ALL[setting].title, str(Spread.of(1000 * base)), *ratios]


def started(setting: str, processes: int, devices: str, seconds: float) -> list[float]:
    """The seconds an update that the chief of so many processes measured."""
    root = Path(__file__).parent.parent
    command = [str(Path(__file__)), f"--worker={setting}", f"--devices={devices}", f"--seconds={seconds}"]
    launched = ["-m", "maml.launch", f"--workers={processes}", *command] if processes > 1 else command
    environment = os.environ | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    printed = subprocess.run(
        [sys.executable, *launched], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return [float(line) for line in printed.splitlines()]


def main() -> None:
    """Measures and prints a Markdown table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    divide = [name for name, setting in ALL.items() if setting.config.meta_batch_size % 2 == 0]
    usual = [name for name in divide if name in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=divide, default=usual, help="whose tasks divide by 2")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of a measurement")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--devices", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.devices, 5, args.seconds)
        return
    header = ["meta-update", "1 process, ms", *list(WAYS)[1:]]
    print(machine_lines(machine()), table(header, []), sep="\n\n", end="", flush=True)
    for setting in args.settings:
        print(f"| {' | '.join(compare(setting, args.repetitions, args.seconds))} |", flush=True)


if __name__ == "__main__":
    main()
