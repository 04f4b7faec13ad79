"""What a meta-update costs beside the same one in JAX and in PyTorch.

  python -m benchmarks.peers
  python -m benchmarks.peers --settings omniglot_5w1s --formulations "PyTorch loop"

JAX, PyTorch and learn2learn are no requirements of the project: `pip install jax torch learn2learn`; what is missing
stays empty. Writes benchmarks/results/peers.md and .json after every setting.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.formulations import (
    JAX_MAP,
    JAX_VMAP,
    KERAS,
    LEARN2LEARN,
    OURS,
    PEERS,
    TORCH_LOOP,
    TORCH_VMAP,
    UPDATES_IN_A_LOOP,
)
from benchmarks.measure import Spread, by_turns, count, digits, machine, machine_lines, table, write_report
from benchmarks.settings import ALL, SETTINGS, Setting
from benchmarks.speed import AGREEMENT, RESULTS, agree, spread
from benchmarks.worker import Worker

SECONDS = 20  # of repetitions of a setting, after which they end
TITLES = {
    OURS: "ours",
    KERAS: "ours, the network written in Keras",
    JAX_VMAP: "JAX, `vmap`",
    JAX_MAP: "JAX, `lax.map`",
    TORCH_VMAP: "PyTorch, `vmap`",
    TORCH_LOOP: "PyTorch, a loop",
    LEARN2LEARN: "learn2learn",
}
EXPLANATION = """\
- Times are medians (and quartiles) over repetitions that take turns, each formulation in a process of its own with its
  library's default threads ({threads}), float32, on
  the processor. A meta-update is inner steps, meta-gradient, clipping and Adam. Behind it: how many times as long as
  ours it takes, the median of the repetitions' ratios.
- All start with the same weights and episodes, and each gave our meta-loss in this run, to {agreement:g}. Omniglot's
  inner rate is a tenth of the paper's and miniImageNet's 0.0005, images are noise: the cost is the same, and float32's
  rounding, which the paper's rates can grow to a thousandth of the loss, stays small.
- *Keras*: the network as anyone would write it (`benchmarks/peer_keras.py`), in `maml.own`, as `maml.train` has it.
- *JAX*: `jax.grad` of a task, under `jax.vmap` or one task after the other in `lax.map`; the whole update is under
  `jax.jit`. *PyTorch*: `torch.func.grad` under `torch.func.vmap`, or a loop over the tasks with `torch.autograd.grad`;
  its own batch-norm and Adam (fused). `benchmarks/peer_jax.py`, `benchmarks/peer_torch.py`.
- *learn2learn*: its `MAML` around the PyTorch network, `clone` and `adapt` for one task after the other
  (`benchmarks/peer_learn2learn.py`).
- The sinusoid is {loop} updates a call in ours, which samples new episodes inside, and in JAX, on the same episodes
  (`lax.fori_loop`); PyTorch is called for every update.
"""


def missing(packages: set[str]) -> set[str]:
    """Those that are not installed."""
    return {package for package in packages if importlib.util.find_spec(package) is None}


def measure(setting: Setting, names: list[str], repetitions: int, limit: float) -> dict[str, Any]:
    """Seconds of a meta-update in ours and in every formulation that can be had, and why another cannot.

    Args:
        limit: seconds from the start of a process to the end of its first meta-update.

    Raises:
        RuntimeError: our own formulation does not run.
    """
    config, workers, notes = setting.config, {}, {}
    if config.datasource == "omniglot":  # at 0.4, a ReLU that rounding opens is a thousandth of the meta-loss
        config = config.replace(update_lr=config.update_lr / 10)
    with contextlib.ExitStack() as stack:
        ours = workers[OURS] = stack.enter_context(contextlib.closing(Worker(OURS, config)))
        for name in names:
            try:
                worker = stack.enter_context(contextlib.closing(Worker(name, config, limit)))
                agree({OURS: ours.first["loss"], name: worker.first["loss"]}, OURS)
                workers[name] = worker
            except (RuntimeError, TimeoutError) as error:
                notes[name] = str(error)
        times = by_turns({name: worker.run for name, worker in workers.items()}, repetitions, SECONDS)
    seconds = {name: [value / worker.updates for value in times[name]] for name, worker in workers.items()}
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds[OURS], strict=True)] for name in workers}
    return {
        "seconds": {name: Spread.of(values)._asdict() for name, values in seconds.items()},
        "over_ours": {name: Spread.of(values)._asdict() for name, values in ratios.items()},
        "processes": {name: worker.first for name, worker in workers.items()},
        "repetitions": len(times[OURS]),
        "left_out": notes,
    }


def cell(row: dict[str, Any], name: str) -> str:
    """Milliseconds and how many times ours; nothing if it was not measured."""
    seconds, ratio = spread(row, name), row.get("over_ours", {}).get(name)
    return f"{seconds}, **{digits(ratio['median'])}**" if ratio and name != OURS else seconds


def report(values: dict[str, Any]) -> str:
    """The Markdown of what was measured so far; what was not stays empty."""
    rows = values["settings"].values()
    steps = [[row["title"], *(cell(row, name) for name in TITLES)] for row in rows]
    versions = ", ".join(f"{package} {version}" for package, version in values["versions"].items())
    text = ["# Compared with JAX and PyTorch\n", f"{machine_lines(values['machine'])} {versions}\n"]
    text.append(table(["meta-update, ms", *TITLES.values()], steps))
    threads = f"OMP_NUM_THREADS, which PyTorch follows: {values['omp_num_threads'] or 'not set'}"
    text.append(EXPLANATION.format(agreement=AGREEMENT, loop=UPDATES_IN_A_LOOP, threads=threads))
    notes = [f"- {row['title']}: {note}\n" for row in rows for note in row.get("left_out", {}).values()]
    text += [f"- {note}\n" for note in values["missing"]] + notes
    starts = [
        [f"{row['title']}: {TITLES[name]}", digits(first["first_call_s"]), f"{first['memory_peak'] / 2**20:.0f}"]
        for row in rows
        for name, first in row.get("processes", {}).items()
    ]
    text.append("## First meta-update and memory\n\nEvery process holds TensorFlow too, which makes the episodes.\n")
    text.append(table(["", "first call, s", "peak memory, MiB"], starts))
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(ALL), default=list(SETTINGS), help="default: all but toy")
    parser.add_argument("--formulations", nargs="+", choices=list(PEERS), default=list(PEERS), help="each in quotes")
    parser.add_argument("--repetitions", type=count, default=15, help=f"at most; they end after {SECONDS} s a setting")
    parser.add_argument("--limit", type=count, default=120, help="seconds; what starts slower is left out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of peers.md and peers.json")
    options = parser.parse_args(arguments)

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all of them on the processor: three libraries do not share a GPU
    begin, lacking = time.perf_counter(), missing({PEERS[name] for name in options.formulations})
    names = [name for name in options.formulations if PEERS[name] not in lacking]
    values: dict[str, Any] = {
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in sorted({PEERS[n] for n in names})},
        "missing": [f"{package} is not installed: pip install {package}" for package in sorted(lacking)],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "settings": {name: {"title": ALL[name].title} for name in options.settings},
    }
    print(*values["missing"], machine_lines(values["machine"]), sep="\n")
    for name, row in values["settings"].items():
        try:
            row |= measure(ALL[name], names, options.repetitions, options.limit)
        except KeyboardInterrupt:
            print(f"Stopped; what was measured before stands in {options.output / 'peers.md'}", file=sys.stderr)
            return 130
        times = ", ".join(f"{TITLES[peer]} {cell(row, peer)} ms" for peer in row["seconds"])
        print(f"[{time.perf_counter() - begin:4.0f} s] {name}: {times}", *row["left_out"].values(), sep="\n  ")
        write_report(options.output, "peers", report(values), values)
    print(f"Written to {options.output / 'peers.md'} and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
