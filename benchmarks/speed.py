"""What a meta-update costs, beside the official structure and beside its bare arithmetic.

  python -m benchmarks.speed
  python -m benchmarks.speed --settings omniglot_5w1s --repetitions 30

Writes benchmarks/results/speed.md and .json after every part, so that what was measured stays
when the program is stopped. Image data is noise made in memory; no files are needed.
"""

import argparse
import concurrent.futures
import contextlib
import io
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import formulations, lower_bound
from benchmarks.formulations import BFLOAT16, DEFAULT, FIRST_ORDER, OPTIONS, OURS, PLAIN, PLAIN_SMALL, RECOMPUTED, WHOLE
from benchmarks.measure import Spread, by_turns, count, digits, machine, machine_lines, table, write_report
from benchmarks.settings import ALL, SETTINGS, Setting, random_data
from benchmarks.worker import Worker
from maml.config import Config
from maml.maml import MAML
from maml.models.official import Network
from maml.parallel import set_up_threads
from maml.training import loop as training

AGREEMENT = 1e-3  # relative, of float32 meta-losses
SECONDS = 20  # of repetitions of a setting, after which they end
GENERATOR_CALLS = 20
ITERATIONS = 60_000  # of the training of which some windows are measured, as in the official commands
WINDOWS, BARE_CALLS = 3, 10  # of the end-to-end rate, and of the bare step after each window
RESULTS = Path(__file__).parent / "results"
TITLES = {
    PLAIN: "official structure",
    PLAIN_SMALL: "with our threads",
    WHOLE: "with all its query losses",
    OURS: "ours",
    FIRST_ORDER: "ours, first order",
    RECOMPUTED: "ours, recomputed",
    BFLOAT16: "ours, bfloat16",
}

EXPLANATION = """\
- Times are medians (and quartiles) over repetitions that take turns, each formulation in a process of its own. A
  meta-update is inner steps, meta-gradient, clipping and Adam; episodes are given, but for "ours" on the sinusoid,
  which samples them inside, {loop} meta-updates a call, as training does. Images are noise, and the inner rate of
  miniImageNet is 0.0005: neither changes the cost, and at the paper's 0.01 float32's rounding would grow to percents
  of the loss.
- *Official structure*: `tf.map_fn` over the tasks, each with its own convolutions, plain exact batch-norm and nested
  tapes, and only the query loss that is trained on (`benchmarks/official_structure.py`). It and ours gave the same
  meta-loss in this run, to {agreement:g}. It has TensorFlow's default threads; *with our threads* is the same with
  kernels that do not split over cores, as ours (`maml/parallel.py`).
- *Lower bound*: B·[K·S·(9F − 5F₁) + Q·(3F − F₁)] multiply-adds (`benchmarks/lower_bound.py`) at the rate of the layers'
  products alone, measured by turns with the rest: batched matrix products for strided networks, convolutions for
  pooled ones.
"""


def agree(losses: dict[str, float], reference: str = PLAIN) -> None:
    """Refuses to compare formulations that do not compute the same meta-loss.

    Raises:
        RuntimeError: a loss differs from that of the `reference`.
    """
    for name, loss in losses.items():
        if not abs(loss - losses[reference]) <= AGREEMENT * abs(losses[reference]):
            raise RuntimeError(f"meta-loss of {name!r} is {loss}, and that of {reference!r} {losses[reference]}")


def measure_steps(setting: Setting, names: tuple[str, ...], repetitions: int) -> dict[str, Any]:
    """Seconds of a meta-update in every formulation, and of the bare arithmetic; what each process took to start."""
    config, network = setting.config, Network.from_config(setting.config)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            if name != BFLOAT16 or config.convolutional:
                workers[name] = stack.enter_context(contextlib.closing(Worker(name, config)))
        losses = {name: worker.first["loss"] for name, worker in workers.items()}
        agree({name: loss for name, loss in losses.items() if name != BFLOAT16})
        # The better of the rates at the size of the support and of the query set.
        bare = {}
        if config.convolutional:
            bare = {
                f"products {n}": lower_bound.products(config, network, n)
                for n in {*lower_bound.support_and_query(config)}
            }
        calls = {name: worker.run for name, worker in workers.items()}
        times = by_turns(calls | {name: product.run for name, product in bare.items()}, repetitions, SECONDS)

    row: dict[str, Any] = {"title": setting.title, "losses": losses, "repetitions": len(times[OURS])}
    row["processes"] = {name: worker.first for name, worker in workers.items()}
    seconds = {name: [value / worker.updates for value in times[name]] for name, worker in workers.items()}
    row["seconds"] = {name: Spread.of(values)._asdict() for name, values in seconds.items()}
    ratios = [plain / ours for plain, ours in zip(seconds[PLAIN], seconds[OURS], strict=True)]
    row["plain_over_ours"] = Spread.of(ratios)._asdict()
    row["multiply_adds"] = lower_bound.meta_update_multiply_adds(config, network)
    if bare:
        rate = max(product.multiply_adds / Spread.of(times[name]).median for name, product in bare.items())
        row["flop_per_second"] = 2 * rate
        row["bound_seconds"] = row["multiply_adds"] / rate
    return row


def alone(function: Callable[..., dict], name: str, *arguments: Any) -> dict[str, Any]:
    """What a function of a setting returns in a process of its own, with the threads that main.py sets."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, set_up_threads, (ALL[name].config,)) as pool:
        return pool.submit(function, ALL[name], *arguments).result()


def measure_generator(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Episodes a second of the generator alone, over a data set of the real one's size."""
    config = setting.config
    data, compiled = random_data(config, setting.classes, setting.images), MAML(config).compiled

    @tf.function(jit_compile=compiled, autograph=False)
    def sample(first, calls):
        def one(index, total):
            episodes = data.episodes("train", index, config.meta_batch_size)
            return index + 1, total + tf.add_n([tf.reduce_sum(tensor) for tensor in episodes])

        return tf.while_loop(
            lambda index, _: index < first + calls, one, (first, tf.constant(0.0)), parallel_iterations=1
        )[1]

    calls = GENERATOR_CALLS if config.classification else 50 * GENERATOR_CALLS
    times = by_turns({"sample": lambda: float(sample(tf.constant(0), tf.constant(calls)))}, repetitions, SECONDS / 10)
    rates = [calls * config.meta_batch_size / seconds for seconds in times["sample"]]
    return {"episodes_per_second": Spread.of(rates)._asdict()}


def windowed(setting: Setting) -> Config:
    """The setting with a summary, a validation and a checkpoint in every window."""
    window, default = setting.window, setting.config
    share = min(1.0, window / default.validation_interval)
    return default.replace(
        metatrain_iterations=ITERATIONS,
        summary_interval=min(window, default.summary_interval),
        save_interval=min(window, default.save_interval),
        val_interval=min(window, default.validation_interval),
        val_tasks=max(1, round(share * default.val_tasks)),
    )


class _Enough(Exception):
    """As many windows as are measured."""


def measure_training(setting: Setting) -> dict[str, Any]:
    """Iterations a second of `maml.training.loop`, with summaries, validations and checkpoints, beside the bare step.

    From checkpoint to checkpoint, after a first window in which everything is compiled; after every
    window the bare step is measured, so that a disturbance meets both. Where a window is shorter
    than the default intervals, there are one summary and one checkpoint in it, which is more often
    than by default, and as many validation tasks an iteration as by default.
    """
    window, config = setting.window, windowed(setting)
    data = random_data(config, setting.classes, setting.images, ("train", "val"))
    bare = formulations.build(OURS, config, data)
    begin = 0.0
    pairs: list[tuple[float, float]] = []  # seconds of an iteration, and of a bare step

    def saved(iteration: int) -> None:
        nonlocal begin
        if iteration % window:
            return
        seconds = (time.perf_counter() - begin) / window
        bare.run(bare.updates)
        start = time.perf_counter()
        for _ in range(BARE_CALLS):
            bare.run(bare.updates)
        pairs.append((seconds, (time.perf_counter() - start) / (BARE_CALLS * bare.updates)))
        if len(pairs) > WINDOWS:
            raise _Enough
        begin = time.perf_counter()

    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(_Enough),
    ):
        training.train(config, MAML(config), data, Path(name), on_save=saved)
        raise KeyboardInterrupt  # which training hears itself
    del pairs[0]  # everything was compiled in it
    return {
        "training": {
            "iterations_per_second": 1 / Spread.of([each for each, _ in pairs]).median,
            "of_the_bare_step": Spread.of([step / each for each, step in pairs])._asdict(),
            "iterations": window,
            "windows": len(pairs),
            "val_tasks": config.val_tasks,
        }
    }


def spread(row: dict[str, Any], name: str) -> str:
    """Median and quartiles in milliseconds, or nothing if it was not measured."""
    found = row.get("seconds", {}).get(name)
    return str(Spread(*(1000 * value for value in found.values()))) if found else ""


def report(values: dict[str, Any]) -> str:
    """The Markdown of what was measured so far; what was not stays empty."""
    rows = list(values["settings"].values())
    text = ["# Speed\n", machine_lines(values["machine"]) + "\n", step_table(rows)]
    text.append(EXPLANATION.format(loop=formulations.UPDATES_IN_A_LOOP, agreement=AGREEMENT))
    text.append("## Start and memory\n\nThe first meta-update of each process.\n")
    text.append(start_table(rows))
    text.append("## Episodes and training\n")
    text.append(training_table(rows))
    text.append(
        "*Training* is `maml.training.loop` with summaries, validations and checkpoints, at least as often as by\n"
        "default, and with its episodes sampled; only the ten pictures of a run are not in it. The bare rate is that\n"
        "of steps in the same process after each window. Without a figure: left out, to keep the run short.\n"
    )
    return "\n".join(text)


def step_table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a meta-update: a line for each setting, a column for each formulation."""
    measured = {name for row in rows for name in row.get("seconds", {})}
    names = [name for name in (PLAIN, PLAIN_SMALL, WHOLE) if name in measured]
    variants = [name for name in OPTIONS if name in measured - {OURS}]
    steps = [
        [
            row["title"],
            *(spread(row, name) for name in names),
            spread(row, OURS),
            f"**{digits(row['plain_over_ours']['median'])}**" if "plain_over_ours" in row else "",
            *(spread(row, name) for name in variants),
            digits(1000 * row["bound_seconds"]) if "bound_seconds" in row else "",
            digits(row["seconds"][OURS]["median"] / row["bound_seconds"]) if "bound_seconds" in row else "",
        ]
        for row in rows
    ]
    titles = [TITLES[name] + ", ms" for name in [*names, OURS, *variants]]
    titles.insert(len(names) + 1, "official / ours")
    return table(["meta-update", *titles, "lower bound, ms", "ours / lower bound"], steps)


def start_table(rows: list[dict[str, Any]]) -> str:
    """Seconds to the first update, and memory: a line for each process."""
    starts = [
        [
            f"{row['title']}: {TITLES[name]}",
            digits(probe["first_call_s"]),
            digits(probe["start_to_first_step_s"]),
            f"{probe['memory_peak'] / 2**20:.0f}",
            f"{(probe['memory_peak'] - probe['memory_before']) / 2**20:.0f}",
            f"{probe['gpu_memory_peak'] / 2**20:.0f}" if "gpu_memory_peak" in probe else "",
        ]
        for row in rows
        for name, probe in row.get("processes", {}).items()
    ]
    header = [
        "",
        "first call, s",
        "process start to first step, s",
        "peak memory, MiB",
        "of which for the step",
        "GPU, MiB",
    ]
    return table(header, starts)


def training_table(rows: list[dict[str, Any]]) -> str:
    """Rates of the generator and of whole trainings: a line for each setting."""
    rates = [
        [
            row["title"],
            f"{row['episodes_per_second']['median']:,.0f}" if "episodes_per_second" in row else "",
            digits(1 / row["seconds"][OURS]["median"]) if "seconds" in row else "",
            digits(row["training"]["iterations_per_second"]) if "training" in row else "",
            str(Spread(**row["training"]["of_the_bare_step"])) if "training" in row else "",
            f"{row['training']['windows']} × {row['training']['iterations']}" if "training" in row else "",
        ]
        for row in rows
    ]
    header = ["", "episodes/s, generator alone", "bare steps/s", "training, iterations/s", "share of the bare rate"]
    return table([*header, "over iterations"], rates)


def summary(part: dict[str, Any]) -> str:
    """One line of a part, for the terminal."""
    row = {"title": "", **part}
    if "seconds" in part:
        times = ", ".join(f"{name} {spread(row, name)} ms" for name in part["seconds"])
        bare = f", lower bound {digits(1000 * part['bound_seconds'])} ms" if "bound_seconds" in part else ""
        memory = ", ".join(f"{found['memory_peak'] / 2**20:.0f}" for found in part["processes"].values())
        return f"{times}{bare}; {part['repetitions']} repetitions; peak memory {memory} MiB"
    if "episodes_per_second" in part:
        return f"generator {part['episodes_per_second']['median']:,.0f} episodes/s"
    rate, share = part["training"]["iterations_per_second"], Spread(**part["training"]["of_the_bare_step"])
    return f"training {digits(rate)} iterations/s, {share} of the bare rate"


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(ALL), default=list(SETTINGS), help="default: all but toy")
    parser.add_argument("--repetitions", type=count, default=15, help=f"at most; they end after {SECONDS} s a setting")
    parser.add_argument(
        "--also", nargs="+", choices=[WHOLE, RECOMPUTED, BFLOAT16], default=[], help="further columns, each in quotes"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of speed.md and speed.json")
    options = parser.parse_args(arguments)
    names = (*DEFAULT, *options.also)

    begin = time.perf_counter()
    tf.get_logger().setLevel("ERROR")  # every setting traces functions of its own, and is warned of it
    rows: dict[str, Any] = {name: {"title": ALL[name].title} for name in options.settings}
    values = {"machine": machine(), "settings": rows}
    print(machine_lines(values["machine"]))
    parts = {
        "steps": lambda name: measure_steps(ALL[name], names, options.repetitions),
        "generator": lambda name: alone(measure_generator, name, options.repetitions),
        "training": lambda name: alone(measure_training, name) if ALL[name].window else {},
    }
    for measure, name in itertools.product(parts.values(), options.settings):
        try:
            part = measure(name)
        except KeyboardInterrupt:
            print(f"Stopped; what was measured before stands in {options.output / 'speed.md'}", file=sys.stderr)
            return 130
        if part:
            rows[name] |= part
            print(f"[{time.perf_counter() - begin:4.0f} s] {name}: {summary(part)}", flush=True)
            write_report(options.output, "speed", report(values), values)
    print(f"Written to {options.output / 'speed.md'} and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
