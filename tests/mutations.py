"""Breaks the code on purpose, one way at a time, and records which tests notice.

  python -m tests.sabotage            writes docs/sabotage.md

Each breakage is applied to a copy of the project. One that no test notices is an error.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SCALE = ("closed_form", "unroll")
SECOND = ("closed_form", "central_differences", "unroll")
UPDATE = ("closed_form",)
EPISODES = ("data_generator",)


class Breakage(NamedTuple):
    """name: what is broken; file, old, new: how; tests: the test files that are run."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BREAKAGES = [
    Breakage(
        "mean instead of sum in the inner loss",
        "maml/losses.py",
        "tf.reduce_sum(losses, 1) / update_batch_size",
        "tf.reduce_mean(losses, 1)",
        SCALE,
    ),
    Breakage(
        "`tf.nn.moments` in batch-norm (fully connected)",
        "maml/networks.py",
        "    centred = inp - tf.reduce_mean(inp, axes, keepdims=True)\n"
        "    variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)\n",
        "    mean, variance = tf.nn.moments(inp, axes, keepdims=True)\n    centred = inp - mean\n",
        SECOND,
    ),
    Breakage(
        "second derivative of convolutional batch-norm without its dependence on the variance",
        "maml/ops.py",
        "2 * b * of_q - r * e",
        "2 * b * of_q",
        (*SECOND, "ops"),
    ),
    Breakage(
        "second derivative of a matrix product without its path through the examples",
        "maml/ops.py",
        "return total, lambda u: (_product_back(dout, u), _own_product(inp, u))",
        "return total, lambda u: (tf.zeros_like(inp), _own_product(inp, u))",
        (*SECOND, "ops"),
    ),
    Breakage(
        "inner gradients of the first step's shared weights summed over the tasks",
        "maml/ops.py",
        "lambda dout: (dout, gradient(dout))",
        "lambda dout: (dout, tf.zeros_like(own) + tf.reduce_sum(gradient(dout), 0))",
        (*SECOND, "ops"),
    ),
    Breakage(
        "beta adapted in the inner loop",
        "maml/maml.py",
        "theta = {name: weight for name, weight in weights.items() if is_adapted(name)}",
        'theta = {name: weight for name, weight in weights.items() if not name.endswith("gamma")}',
        SCALE,
    ),
    Breakage(
        "stop_gradient on the inner gradient",
        "maml/maml.py",
        "if self.config.stop_grad:",
        "if True:",
        SECOND,
    ),
    Breakage(
        "clip by norm instead of by element",
        "maml/maml.py",
        "tf.clip_by_value(gradient, -GRADIENT_LIMIT, GRADIENT_LIMIT)",
        "tf.clip_by_norm(gradient, GRADIENT_LIMIT)",
        UPDATE,
    ),
    Breakage("Adam's ε 1e-7 instead of 1e-8", "maml/optimizer.py", "0.999, 1e-8", "0.999, 1e-7", UPDATE),
    Breakage(
        "Adam's ε inside the bias correction",
        "maml/optimizer.py",
        "(tf.sqrt(v[name]) + EPSILON)",
        "(tf.sqrt(v[name]) + EPSILON * tf.sqrt(1 - tf.pow(tf.constant(BETA_2, dtype), t)))",
        UPDATE,
    ),
    Breakage(
        "labels that do not follow the shuffle",
        "maml/data_generator.py",
        "tf.one_hot(tf.reshape(order, [tasks, per_class * num_classes]), num_classes)",
        "tf.one_hot(tf.tile(tf.range(num_classes)[None], [tasks, per_class]), num_classes)",
        EPISODES,
    ),
    Breakage(
        "query images that repeat support images",
        "maml/data_generator.py",
        "    rows = tf.gather(table.first, classes)[..., None] + drawn\n",
        "    drawn = tf.gather(drawn, tf.range(per_class) % shots, axis=2)\n"
        "    rows = tf.gather(table.first, classes)[..., None] + drawn\n",
        EPISODES,
    ),
    Breakage(
        "rotation differing within a class",
        "maml/data_generator.py",
        "tf.gather(of_class, tf.reshape(order, [tasks, -1]), batch_dims=1)",
        "tf.cast(_random_bits(keys[3], [tasks, per_class * num_classes], 2), tf.int32)",
        EPISODES,
    ),
    Breakage(
        "Omniglot not inverted",
        "maml/images.py",
        'return 255 - np.asarray(image.convert("L"))',
        'return np.asarray(image.convert("L"))',
        ("images",),
    ),
]


def failures(breakage: Breakage) -> list[str]:
    """The tests that fail when `breakage` is applied to a copy of the project."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".venv", ".git", "logs", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / breakage.file
        text = path.read_text(encoding="utf-8")
        if text.count(breakage.old) != 1:
            raise SystemExit(f"{breakage.file} does not hold this once, mend the breakage: {breakage.old}")
        path.write_text(text.replace(breakage.old, breakage.new), encoding="utf-8")
        files = [f"tests/test_{name}.py" for name in breakage.tests]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *files]
        output = subprocess.run(command, cwd=copy, capture_output=True, text=True).stdout
    return re.findall(r"^(?:FAILED|ERROR) tests/test_(\S+)", output, re.MULTILINE)


def summary(failed: list[str]) -> str:
    """Failing tests by file and function, with how many cases of each."""
    counts: dict[str, int] = {}
    for test in failed:
        name = test.split("[")[0].replace(".py::", ": ")
        counts[name] = counts.get(name, 0) + 1
    return "<br>".join(f"{name}" + (f" ({count})" if count > 1 else "") for name, count in counts.items())


def main() -> int:
    """Writes docs/sabotage.md; 1 if a breakage went unnoticed."""
    lines = [
        "# Sabotage",
        "",
        "What fails when the code is broken on purpose. Made by `python -m tests.sabotage`, which applies each",
        "breakage to a copy of the project and runs the tests of its field; in brackets: how many cases fail.",
        "",
        "| broken | tests that fail |",
        "|---|---|",
    ]
    unnoticed = 0
    for breakage in BREAKAGES:
        found = summary(failures(breakage))
        unnoticed += not found
        lines.append(f"| {breakage.name} (`{breakage.file}`) | {found or '**none**'} |")
        print(lines[-1], flush=True)
    target = ROOT / "docs" / "sabotage.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
