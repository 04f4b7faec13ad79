"""Timing by turns, the machine's description, and reports that are whole at any time."""

import argparse
import datetime
import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml.files import make_folder, write_json, write_text
from maml.machine import cores, processor

FEWEST = 5  # repetitions, however long they take


class Spread(NamedTuple):
    """Quartiles of repeated measurements."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values) -> "Spread":
        """The quartiles of these values."""
        return cls(*(float(value) for value in np.percentile(values, [25, 50, 75])))

    def __str__(self) -> str:
        return f"{digits(self.median)} ({digits(self.lower)}–{digits(self.upper)})"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def by_turns(calls: dict[str, Callable[[], Any]], repetitions: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, all called once a repetition, so that a disturbance meets them all.

    Each is called once more before it is timed, because the others have emptied the caches, and a
    training's steps follow one another. After `seconds` the repetitions end, but not before there
    are `FEWEST`.
    """
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for repetition in range(repetitions):
        if repetition >= FEWEST and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    try:
        # On Linux, ru_maxrss may be that of the process that started this one; VmHWM never is.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def machine() -> dict[str, Any]:
    """What the measurements were made on, and when."""
    import tensorflow as tf

    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": [gpu.get("device_name", "GPU") for gpu in gpus],
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def machine_lines(values: dict[str, Any]) -> str:
    """The machine in one sentence of Markdown."""
    gpu = f", GPU: {', '.join(values['gpu'])}" if values["gpu"] else ", no GPU"
    return (
        f"{values['processor']}, {values['cores']} cores, {values['memory_gib']} GiB{gpu}; {values['system']}; "
        f"Python {values['python']}, TensorFlow {values['tensorflow']}; {values['date']}; "
        f"load average at the start {values['load_at_start']}."
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_report(folder: Path, stem: str, text: str, values: dict[str, Any]) -> None:
    """Replaces `<stem>.md` and `<stem>.json`."""
    make_folder(folder)
    write_text(folder / f"{stem}.md", text)
    write_json(folder / f"{stem}.json", values)


def count(text: str) -> int:
    """A positive integer of the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value
