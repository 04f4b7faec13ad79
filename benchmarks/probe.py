"""One formulation in a process of its own: its first call, its start-up and its peak memory.

python -m benchmarks.probe omniglot_5w1s ours
"""

import json
import subprocess
import sys
import time
from typing import Any


def in_own_process(setting: str, formulation: str) -> dict[str, Any]:
    """What `probe` measures, in a fresh interpreter.

    Raises:
        RuntimeError: the process failed; the message is its stderr.
    """
    command = [sys.executable, "-m", "benchmarks.probe", setting, formulation, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def probe(setting: str, formulation: str, started: float) -> dict[str, Any]:
    """Computes one meta-update.

    Args:
        started: time.time() at which the process was started.

    Returns:
        first_call_s: of the first call (trace, compile and run).
        start_to_first_step_s: from the start of the process to the end of the first meta-update.
        memory_before, memory_peak: largest resident memory before and after it, bytes.
        gpu_memory_peak: on the GPU, bytes; only where there is one.
    """
    import tensorflow as tf

    from benchmarks.formulations import build
    from benchmarks.measure import peak_memory
    from benchmarks.settings import ALL, random_data

    config = ALL[setting].config
    step = build(formulation, config, random_data(config))
    memory_before, begin = peak_memory(), time.perf_counter()
    step.run(1)
    measured = {
        "first_call_s": time.perf_counter() - begin,
        "start_to_first_step_s": time.time() - started,
        "memory_before": memory_before,
        "memory_peak": peak_memory(),
    }
    if tf.config.list_physical_devices("GPU"):
        measured["gpu_memory_peak"] = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return measured


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else time.time())))
