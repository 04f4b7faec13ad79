"""Kills trainings with SIGKILL at random moments and compares their end with that of one left alone.

  python -m tests.kill                              20 kills for every data source
  python -m tests.kill --kills=5 --seed=1 omniglot
  python -m tests.kill --workers=2                  20 times a random one of two workers, by SIGKILL or SIGTERM

Weights, Adam's state, progress and every printed line must agree to the bit, and a restart must go on
from the newest checkpoint. The images are made up.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maml.launch import environment_of, free_ports
from tests.command_line import ROOT
from tests.image_fixtures import write_class_folders, write_omniglot_archives

START_SECONDS = 5.0  # before the first iteration
REPORTED = ("Iteration", "Pretrain Iteration", "Validation results")

TINY = ("--update_batch_size=1", "--num_filters=2", "--meta_batch_size=2", "--query_size=1", "--num_classes=3")
TINY += ("--val_tasks=4", "--val_interval=100", "--summary_interval=20", "--save_interval=10")
FLAGS = {
    "sinusoid": (
        *("--norm=None", "--pretrain_iterations=1000", "--metatrain_iterations=3000"),
        *("--val_interval=1000", "--val_tasks=20", "--save_interval=50"),
    ),
    "omniglot": (*TINY, "--metatrain_iterations=600"),
    "miniimagenet": (*TINY, "--metatrain_iterations=600", "--max_pool=False"),  # starts faster
    "folder": (*TINY, "--metatrain_iterations=600", "--image_size=20", "--channels=1"),
}


class Outcome(NamedTuple):
    """What the kills of one training came to.

    kills: the newest checkpoint at each kill.
    lines: printed results that were compared.
    tensors: tensors that were compared.
    """

    kills: list[int]
    lines: int
    tensors: int


def write_data(source: str, folder: Path) -> None:
    """Makes images for a data source."""
    if source == "omniglot":
        write_omniglot_archives(folder)
    elif source != "sinusoid":
        size, channels = (20, 1) if source == "folder" else (84, 3)
        write_class_folders(folder, {"train": 6, "val": 4}, 6, size, channels)


def start(source: str, folder: Path, flags: tuple[str, ...]) -> subprocess.Popen:
    """Trains in `folder`; what it prints goes to files there."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), f"--datasource={source}", "--logdir=runs", "--deterministic"]
    command += [f"--data_dir={folder.parent / 'data'}", *FLAGS[source], *flags]
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        return subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=err)


def printed(folder: Path) -> str:
    """What the last training in `folder` printed; it must not have complained."""
    complaint = (folder / "err").read_text()
    assert not complaint, complaint
    return (folder / "out").read_text()


def results(text: str) -> list[str]:
    """The printed lines that hold results."""
    return [line for line in text.splitlines() if line.startswith(REPORTED)]


def newest(folder: Path) -> int:
    """The iteration of the newest checkpoint of the run in `folder`, 0 if there is none."""
    return max((int(path.stem.removeprefix("model")) for path in folder.glob("runs/*/model*.index")), default=0)


def tensors(folder: Path, stem: str, iteration: int | str = "*") -> dict[str, np.ndarray]:
    """All tensors of the newest checkpoint of a stem, or of that of an iteration, if there is one."""
    found = folder.glob(f"runs/*/{stem}{iteration}.index")
    latest = max(found, key=lambda path: int(path.stem.removeprefix(stem)), default=None)
    if latest is None:
        return {}
    reader = tf.train.load_checkpoint(str(latest.with_suffix("")))
    return {f"{stem}/{name}": reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def kill_one(
    source: str, folder: Path, flags: tuple[str, ...], rng: random.Random, goals: tuple[float, float], pause: float
) -> None:
    """Trains, and kills that while it starts, or at most `pause` seconds behind a checkpoint between two goals."""
    process = start(source, folder, flags)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, START_SECONDS))
    else:
        goal = rng.uniform(*goals)
        while newest(folder) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, pause))
    assert process.poll() is None, "the training ended before it was killed: " + (folder / "err").read_text()
    process.kill()
    process.wait()


def kill_and_resume(source: str, kills: int, seed: int, folder: Path, flags: tuple[str, ...] = ()) -> Outcome:
    """Trains once without and once with kills; AssertionError if anything differs."""
    write_data(source, folder / "data")
    begin, whole, killed = time.perf_counter(), folder / "whole", folder / "killed"
    assert start(source, whole, flags).wait() == 0, (whole / "err").read_text()
    training_seconds = max(time.perf_counter() - begin - START_SECONDS, 1.0)
    expected, total = results(printed(whole)), newest(whole)

    rng, moments, seen = random.Random(seed), [], set()

    # Validations come right after printed iterations, so that every part begins with a line that is unique.
    def take(from_iteration: int) -> None:
        """Compares what a process printed with the lines that should stand there."""
        text = printed(killed)
        went_on = re.search(r"Resuming from iteration (\d+)", text)
        assert went_on is None or int(went_on[1]) == from_iteration, f"not from {from_iteration}: {text}"
        lines = results(text)
        if lines:
            first = expected.index(lines[0])
            assert lines == expected[first : first + len(lines)]
            seen.update(lines)

    for number in range(kills):
        before = newest(killed)
        kill_one(source, killed, flags, rng, (before, total * (number + 1) / (kills + 1)), 0.02 * training_seconds)
        take(before)
        moments.append(newest(killed))
    last = start(source, killed, flags)
    assert last.wait() == 0, (killed / "err").read_text()
    take(moments[-1] if moments else 0)

    assert seen == set(expected), f"missing: {set(expected) - seen}"
    wanted, found = ({**tensors(each, "model"), **tensors(each, "best")} for each in (whole, killed))
    assert wanted and wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype and value.tobytes() == found[name].tobytes(), name
    return Outcome(moments, len(expected), len(wanted))


WORKERS_FLAGS = ("--algorithm=protonet", "--datasource=folder", "--data_dir=../data", "--image_size=20", "--channels=1")
WORKERS_FLAGS += ("--num_classes=3", "--train_num_classes=3", "--update_batch_size=1", "--query_size=1")
WORKERS_FLAGS += ("--num_filters=2", "--meta_batch_size=4", "--val_tasks=0", "--logdir=runs", "--deterministic")
WORKERS_FLAGS += ("--save_interval=20",)
WORKERS_ITERATIONS = 75  # for each kill
ENDS_WITHIN = 30.0  # seconds, of all, when one is gone


def start_workers(workers: int, folder: Path, iterations: int) -> list[subprocess.Popen]:
    """A training by several processes; what each prints goes to a file."""
    folder.mkdir(exist_ok=True)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for worker in range(workers):
        environment = environment_of(worker, addresses) | {"PYTHONPATH": str(ROOT)}
        with open(folder / f"out{worker}", "wb") as out, open(folder / f"err{worker}", "wb") as err:
            command = [sys.executable, str(ROOT / "main.py"), *WORKERS_FLAGS, f"--metatrain_iterations={iterations}"]
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err))
    return processes


def train_by_workers(workers: int, folder: Path, iterations: int) -> None:
    """Trains in folder/whole, on images in folder/data, and leaves it alone."""
    write_data("folder", folder / "data")
    whole = folder / "whole"
    for worker, process in enumerate(start_workers(workers, whole, iterations)):
        assert process.wait() == 0, (whole / f"err{worker}").read_text()


def kill_workers(workers: int, kills: int, seed: int, folder: Path) -> Outcome:
    """Trains as in folder/whole, but with kills of random workers; AssertionError if anything differs."""
    whole, killed, rng, moments = folder / "whole", folder / "killed", random.Random(seed), []
    iterations = newest(whole)
    for number in range(kills):
        processes = start_workers(workers, killed, iterations)
        goal = newest(whole) * (number + rng.random()) / (kills + 1)
        goal = max(goal, newest(killed))  # not before they have met: who is missing then is waited for
        while newest(killed) <= goal and all(process.poll() is None for process in processes):
            time.sleep(0.01)
        victim, how = rng.randrange(workers), (signal.SIGKILL, signal.SIGTERM)[number % 2]
        assert processes[victim].poll() is None, "it ended before: " + (killed / f"err{victim}").read_text()
        processes[victim].send_signal(how)
        for worker, process in enumerate(processes):
            code, complaint = process.wait(ENDS_WITHIN), (killed / f"err{worker}").read_text().strip()
            if how == signal.SIGTERM:
                assert code == 130 and not complaint, (worker, code, complaint)
            elif worker != victim:
                assert code == 1 and "another worker is gone" in complaint and "\n" not in complaint, (code, complaint)
        moments.append(newest(killed))
    for worker, process in enumerate(start_workers(workers, killed, iterations)):
        assert process.wait() == 0, (killed / f"err{worker}").read_text()
    wanted, found = tensors(whole, "model"), tensors(killed, "model")
    assert wanted and wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert value.tobytes() == found[name].tobytes(), name
    return Outcome(moments, 0, len(wanted))


def main() -> int:
    """Prints a Markdown table, a line a data source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=list(FLAGS), help=f"of {', '.join(FLAGS)}; all if none is given")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="more than one: random ones of so many are killed")
    args = parser.parse_args()
    print("| data | kills | newest checkpoint at each kill | compared, all equal to the bit |\n|---|---|---|---|")
    for source in args.sources if args.workers == 1 else [f"folder, protonet, {args.workers} workers"]:
        with tempfile.TemporaryDirectory() as folder:
            if args.workers > 1:
                train_by_workers(args.workers, Path(folder), max(200, WORKERS_ITERATIONS * args.kills))
                outcome = kill_workers(args.workers, args.kills, args.seed, Path(folder))
            else:
                outcome = kill_and_resume(source, args.kills, args.seed, Path(folder))
        moments = ", ".join(str(moment) for moment in outcome.kills)
        compared = f"{outcome.tensors} tensors, {outcome.lines} printed lines"
        print(f"| {source} | {args.kills} | {moments} | {compared} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
