"""Memory and log folder of a long training, with summaries, validations and checkpoints.

  python -m benchmarks.long_run                        50,000 iterations of the sinusoid
  python -m benchmarks.long_run --iterations=20000 --summary_interval=10   further flags go to main.py

Prints a Markdown table; exit code 1 if the memory grew in the second half.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import count, table

ROOT = Path(__file__).parent.parent
ROWS = 10
MOST_GROWTH = 10.0  # MB; the allocator's noise is below


def resident(process: int) -> float:
    """Memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sizes(folder: Path) -> dict[str, float]:
    """MB below a folder: TensorBoard's events, checkpoints, and the rest."""
    found = {"events": 0.0, "checkpoints": 0.0, "rest": 0.0}
    for path in folder.rglob("*"):
        kind = "events" if path.name.startswith("events") else "checkpoints" if "model" in path.name else "rest"
        try:
            found[kind] += path.stat().st_size / 1e6
        except FileNotFoundError:  # a checkpoint that is being replaced
            continue
    return found


def measure(iterations: int, flags: list[str], folder: Path) -> list[list[float]]:
    """Rows of iteration, MB of memory, MB of events, of checkpoints and of the rest, as a training goes on."""
    command = [sys.executable, str(ROOT / "main.py"), "--norm=None", "--update_batch_size=10", f"--logdir={folder}"]
    process = subprocess.Popen([*command, f"--metatrain_iterations={iterations}", *flags], stdout=subprocess.DEVNULL)
    rows: list[list[float]] = []
    while process.poll() is None:
        newest = max((int(path.stem.removeprefix("model")) for path in folder.glob("*/model*.index")), default=0)
        if newest >= (len(rows) + 1) * iterations // ROWS:
            rows.append([newest, resident(process.pid), *sizes(folder).values()])
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"the training ended with exit code {process.returncode}")
    return rows


def main() -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=count, default=50_000)
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.iterations, flags, Path(folder))
    shown = [
        [f"{iteration:,.0f}", f"{memory:.1f}", *(f"{size:.2f}" for size in rest)] for iteration, memory, *rest in rows
    ]
    print(table(["iteration", "memory, MB", "events, MB", "checkpoints, MB", "rest, MB"], shown))
    growth = rows[-1][1] - rows[len(rows) // 2 - 1][1]
    print(f"The memory grew by {growth:.1f} MB in the second half; up to {MOST_GROWTH} pass as noise.")
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
