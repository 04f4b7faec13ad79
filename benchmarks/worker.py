"""One formulation in a process of its own, because thread settings and memory belong to a process.

The process makes its first meta-update, writes what that took as a line of JSON, and then makes
and times one call for every line it reads.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from maml.config import Config


class Worker:
    """A process that computes meta-updates when told to.

    first: what its first meta-update took: see `serve`.
    updates: meta-updates of one call of `run`.
    """

    def __init__(
        self,
        formulation: str,
        config: Config | dict[str, Any],
        limit: float = threading.TIMEOUT_MAX,
        root: Path | None = None,
    ):
        """Starts the process and waits for its first meta-update.

        Args:
            config: or its fields, where they are those of another version.
            root: folder of the version that computes; None: this one.

        Raises:
            TimeoutError: it was not done after `limit` seconds.
            RuntimeError: the process ended.
        """
        self._formulation = formulation
        command = [
            sys.executable,
            "-m",
            "benchmarks.worker",
            formulation,
            json.dumps(config.to_dict() if isinstance(config, Config) else config),
            f"{time.time()}",
        ]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        begin, too_long = time.perf_counter(), threading.Timer(limit, self._process.kill)
        too_long.start()
        try:
            self.first: dict[str, Any] = self._read()
        except RuntimeError:
            if time.perf_counter() - begin < limit:
                raise
            raise TimeoutError(f"no first meta-update of {formulation!r} in {limit:g} s") from None
        finally:
            too_long.cancel()
        self.updates: int = self.first.pop("updates")

    def run(self) -> None:
        """Computes `updates` meta-updates."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._formulation!r} ended with exit code {self._process.wait()}")
        return json.loads(line)


def serve(formulation: str, config: Config, started: float, lines=sys.stdin) -> None:
    """Computes a meta-update, and then one call for every line.

    Args:
        started: time.time() at which the process was started.

    Prints a line of JSON:
        loss: of the first meta-update.
        updates: meta-updates of a call.
        first_call_s: of the first call (trace, compile and run).
        start_to_first_step_s: from the start of the process to the end of the first meta-update.
        memory_before, memory_peak: largest resident memory before and after it, bytes.
        gpu_memory_peak: on the GPU, bytes; only where there is one.
    """
    import tensorflow as tf

    from benchmarks.formulations import build, set_threads
    from benchmarks.measure import peak_memory
    from benchmarks.settings import random_data

    set_threads(formulation, config)
    step = build(formulation, config, random_data(config))
    memory_before, begin = peak_memory(), time.perf_counter()
    measured = {
        "loss": step.run(1),
        "updates": step.updates,
        "first_call_s": time.perf_counter() - begin,
        "start_to_first_step_s": time.time() - started,
        "memory_before": memory_before,
        "memory_peak": peak_memory(),
    }
    if tf.config.list_physical_devices("GPU"):
        measured["gpu_memory_peak"] = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    print(json.dumps(measured), flush=True)
    for _ in lines:
        step.run(step.updates)
        print("{}", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Config.from_dict(json.loads(sys.argv[2]), "benchmarks.worker"), float(sys.argv[3]))
