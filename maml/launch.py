"""Starts several workers of a training on this machine: one process each, and one GPU each where there are any.

  python -m maml.launch --workers=2 main.py --datasource=omniglot ...

The program and what follows it are started by this Python, as often as there are workers. Worker 0 prints and writes;
if one ends with an error, the others are ended, too.
"""

import argparse
import contextlib
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time

GRACE = 30.0  # seconds that the others have, once one has ended with an error


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def environment_of(worker: int, addresses: list[str]) -> dict[str, str]:
    """What tells a process which worker it is."""
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}
    own = {"TF_CONFIG": json.dumps(task)}
    there = gpus()
    return {**os.environ, **own, **({"CUDA_VISIBLE_DEVICES": there[worker % len(there)]} if there else {})}


def start(workers: int, command: list[str]) -> list[subprocess.Popen]:
    """The processes of `workers` workers. Without GPUs each has its share of the cores."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    processes = []
    for worker in range(workers):
        # In a session of its own: Ctrl-C comes from here alone, once.
        process = subprocess.Popen(
            [sys.executable, *command], env=environment_of(worker, addresses), start_new_session=True
        )
        if len(cores) >= workers and not gpus():
            share = cores[worker * len(cores) // workers : (worker + 1) * len(cores) // workers]
            with contextlib.suppress(OSError):  # already over
                os.sched_setaffinity(process.pid, share)
        processes.append(process)
    return processes


def wait(processes: list[subprocess.Popen]) -> int:
    """The exit code of all: that of the first that ended with an error, or 0. Signals are handed on."""

    def hand_on(number, frame) -> None:
        for process in processes:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        failed = next((process.returncode for process in processes if process.poll()), 0)
        if failed and not code:
            code, deadline = failed, time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return code or next((process.returncode for process in processes if process.returncode), 0)


def main() -> int:
    """Starts the workers, waits for them, and returns their exit code."""
    parser = argparse.ArgumentParser(prog="python -m maml.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, required=True, help="processes to start")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="program and its arguments, such as main.py --seed=1")
    arguments = parser.parse_args()
    if arguments.workers < 1 or not arguments.command:
        parser.error("give --workers=N, at least 1, and then a program: --workers=2 main.py --seed=1")
    code = wait(start(arguments.workers, arguments.command))
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
