"""Runs what `benchmarks/gpu/export.py` wrote, by JAX on its device; needs jax and numpy, nothing of this project.

  python run.py update omniglot_5w1s.npz
  python run.py train training.npz trained.npz --count=60000

Several updates may be measured at once: with `--lock` they compile side by side and compute one after the other.
"""

import argparse
import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.lib import xla_client

WARM_UP, CALLS = 3, 50


class Program:
    """A compiled module on the first device."""

    def __init__(self, module: np.ndarray):
        """Compiles it."""
        begin = time.perf_counter()
        computation = xla_client.XlaComputation(module.tobytes())
        text = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
        self.device = jax.local_devices()[0]
        devices = xla_client.DeviceList((self.device,))
        self._program = xla_bridge.get_backend().compile_and_load(text, devices, xla_client.CompileOptions())
        self.seconds = time.perf_counter() - begin

    def put(self, array: Any) -> jax.Array:
        """An array on the device."""
        return jax.device_put(array, self.device)

    def __call__(self, inputs: list) -> list:
        """What it computes."""
        return self._program.execute(inputs)


@contextlib.contextmanager
def alone(lock: Path | None):
    """Waits until no other program with this lock computes."""
    with open(lock or os.devnull, "w") as file:
        if lock:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def numbered(file: Any, name: str) -> list[np.ndarray]:
    """The arrays `name`0, `name`1, …."""
    return [
        file[f"{name}{i}"]
        for i in range(sum(key.removeprefix(name).isdigit() for key in file.files if key.startswith(name)))
    ]


def update(path: Path, lock: Path | None) -> str:
    """Milliseconds of an update, its outputs fed back as the next state, and its error."""
    file = np.load(path)
    program = Program(file["hlo"])
    inputs, expected = [program.put(array) for array in numbered(file, "in")], numbered(file, "out")
    times = []
    with alone(lock):
        outputs = program(inputs)
        found = [np.asarray(output, np.float64) for output in outputs]
        for _ in range(WARM_UP + CALLS):
            begin = time.perf_counter()
            outputs = program([*outputs[:-1], *inputs[len(outputs) - 1 :]])
            outputs[-1].block_until_ready()
            times.append(1000 * (time.perf_counter() - begin))
    wrong = sum(((a - b) ** 2).sum() for a, b in zip(found, expected, strict=True)) / sum(
        (b.astype(float) ** 2).sum() for b in expected
    )
    low, middle, high = np.quantile(times[WARM_UP:], [0.25, 0.5, 0.75])
    loss = abs(found[-1] / float(expected[-1]) - 1)
    return (
        f"{path.stem}: {program.device.device_kind}, compiled in {program.seconds:.1f} s, {middle:.3f} ms an update "
        f"({low:.3f} to {high:.3f}), relative error of the new state {wrong**0.5:.1e}, of the loss {loss:.1e}"
    )


def train(path: Path, output: Path, images: Path | None, count: int, every: int, seconds: float) -> str:
    """Trains to iteration `count`, or for so many seconds; writes the weights after each `every` iterations.

    Args:
        images: a file that is waited for, or None: the module's own.
    """
    file = np.load(path)
    program = Program(file["hlo"])
    print(f"{path.stem}: compiled in {program.seconds:.1f} s", flush=True)
    while images and not images.exists():
        time.sleep(0.2)
    table = program.put(file["images"] if "images" in file.files else np.load(str(images)))
    state, start = [program.put(array) for array in numbered(file, "in")], int(file["first"])
    first, begin, losses = start, time.perf_counter(), []
    kept: dict[str, Any] = {}
    took = 0.0
    while first < count and time.perf_counter() - begin < seconds:
        number = min(every - first % every, count - first)
        *state, loss, finite = program([table, program.put(np.int32(first)), program.put(np.int32(number)), *state])
        first += number
        losses.append(float(np.asarray(loss)))
        if not bool(np.asarray(finite)):
            raise SystemExit(f"{path.stem}: not finite at iteration {first}")
        kept |= {f"{first}/{i}": np.asarray(array) for i, array in enumerate(state[: int(file["weights"])])}
        took = time.perf_counter() - begin
        last = {f"state/{i}": np.asarray(array) for i, array in enumerate(state)}
        with tempfile.NamedTemporaryFile(dir=output.parent, suffix=".npz", delete=False) as temporary:
            np.savez(temporary, iteration=first, losses=losses, seconds=took, **kept, **last)  # type: ignore[arg-type]
        os.replace(temporary.name, output)
        print(f"{path.stem}: iteration {first}, {1000 * took / (first - start):.3f} ms each, {loss}", flush=True)
    return f"{path.stem}: iterations {start} to {first} in {took:.1f} s"


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured, trained = commands.add_parser("update"), commands.add_parser("train")
    measured.add_argument("files", nargs="+", type=Path)
    trained.add_argument("file", type=Path)
    trained.add_argument("output", type=Path)
    trained.add_argument(
        "--images", type=Path, help="waited for; uint8 [images, pixels], where the module's file has none"
    )
    trained.add_argument("--count", type=int, default=60000, help="iterations")
    trained.add_argument(
        "--every", type=int, default=2000, help="iterations of a call; the weights after each are kept"
    )
    trained.add_argument("--seconds", type=float, default=np.inf, help="at most")
    measured.add_argument("--lock", type=Path, help="a file; programs that name the same compute one after the other")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # iterations are 64-bit integers in places
    if args.command == "train":
        print(train(args.file, args.output, args.images, args.count, args.every, args.seconds), flush=True)
        return
    for file in args.files:
        print(update(file, args.lock), flush=True)


if __name__ == "__main__":
    main()
