"""Mutation tests: breaks the code on purpose, one way at a time, and records which tests notice.

  python -m tests.mutations            writes the table of tests/README.md
  python -m tests.mutations devices    those rows of it whose file or name holds one of these words

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
SCALE = ("core/test_closed_form", "core/test_unroll")
SECOND = ("core/test_closed_form", "core/test_central_differences", "core/test_unroll")
UPDATE = ("core/test_closed_form",)
PLUS_PLUS = (
    "core/test_golden_plus_plus",
    "algorithms/test_annealing::test_the_loss_of_every_step_and_its_gradient_are_those_by_hand",
)
REPLICAS = ("devices/test_replicas::test_replicas_change_nothing",)
EPISODES = ("tasks/test_data_generator",)


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
        "maml/algorithms/losses.py",
        "tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, outputs)) / update_batch_size",
        "tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, outputs))",
        SCALE,
    ),
    Breakage(
        "`tf.nn.moments` in batch-norm",
        "maml/kernels/batch_norm.py",
        "    mean = tf.reduce_mean(whose, axes, keepdims=True)\n"
        "    variance = tf.reduce_mean(tf.square(whose - mean), axes, keepdims=True)\n",
        "    mean, variance = tf.nn.moments(whose, axes, keepdims=True)\n",
        SECOND,
    ),
    Breakage(
        "second derivative of batch-norm without its path through the first derivative",
        "maml/kernels/batch_norm.py",
        "of_y * y + of_dx * dx + of_ddout",
        "of_y * y + of_ddout",
        (*SECOND, "core/test_modes", "kernels/test_batch_norm"),
    ),
    Breakage(
        "second derivative of batch-norm with pooling without its dependence on the variance",
        "maml/kernels/batch_norm.py",
        "2 * r * r * b * d - r * (e - a * v)",
        "2 * r * r * b * d",
        (*SECOND, "kernels/test_batch_norm"),
    ),
    Breakage(
        "second derivative of batch-norm with pooling and ReLU without that of the shift",
        "maml/kernels/batch_norm.py",
        "(selected - c - d * (out - shift)) + v",
        "(selected - c - d * (out - shift))",
        (*SECOND, "kernels/test_batch_norm"),
    ),
    Breakage(
        "batch-norm: a lone sum left to XLA, which hands it to a library",
        "maml/kernels/batch_norm.py",
        "    if len(parts) == 1:\n",
        "    if not parts:\n",
        ("kernels/test_batch_norm",),
    ),
    Breakage(
        "second derivative of a small product without its path through the examples",
        "maml/kernels/dense.py",
        "return total, lambda u: (_by_inputs(dout, u), product(inp, u))",
        "return total, lambda u: (tf.zeros_like(inp), product(inp, u))",
        (*SECOND, "kernels/test_dense"),
    ),
    Breakage(
        "tasks side by side that share one gradient",
        "maml/parallel.py",
        "sums = tf.nest.map_structure(lambda tensor: tf.add_n(exact(tf.unstack(tensor))), values)",
        "sums = tf.nest.map_structure(lambda tensor: exact(tensor[0]) * tasks, values)",
        ("core/test_modes",),
    ),
    Breakage(
        "beta adapted in the inner loop",
        "maml/maml.py",
        "theta = {name: weights[name] for name in weights if name in self.adapted}",
        "theta = dict(weights)",
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
        "maml/algorithms/adapting.py",
        "tf.clip_by_value(gradient, -GRADIENT_LIMIT, GRADIENT_LIMIT)",
        "tf.clip_by_norm(gradient, GRADIENT_LIMIT)",
        UPDATE,
    ),
    Breakage("Adam's ε 1e-7 instead of 1e-8", "maml/algorithms/adam.py", "0.999, 1e-8", "0.999, 1e-7", UPDATE),
    Breakage(
        "Adam's ε inside the bias correction",
        "maml/algorithms/adam.py",
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
        "maml/tasks/omniglot_images.py",
        'return 255 - np.asarray(image.convert("L"))',
        'return np.asarray(image.convert("L"))',
        ("tasks/test_images",),
    ),
    Breakage(
        "learned rates that are not given to Adam",
        "maml/maml.py",
        "limited = clipped(gradients) if clips else gradients",
        'limited = {name: 0 * slope if name.startswith("alpha/") else slope for name, slope in gradients.items()}',
        (*PLUS_PLUS, "algorithms/test_family::test_learned_rates_begin_as_published_and_are_given_to_adam"),
    ),
    Breakage(
        "row k + 1 instead of row k",
        "maml/algorithms/adapting.py",
        "row(weights[name], step)]",
        "row(weights[name], step + 1)]",
        PLUS_PLUS,
    ),
    Breakage(
        "the query set behind a step with the next step's row",
        "maml/maml.py",
        "self.of_step(fast, step - 1)",
        "self.of_step(fast, step)",
        PLUS_PLUS,
    ),
    Breakage(
        "annealing by the iteration instead of the epoch",
        "maml/algorithms/adapting.py",
        "(iteration - self.config.pretraining) // self.config.total_iter_per_epoch",
        "iteration - self.config.pretraining",
        PLUS_PLUS,
    ),
    Breakage(
        "the last step's weight too large at the end of the annealing",
        "maml/algorithms/annealing.py",
        "1 - (steps - 1) * LEAST_SHARE / steps",
        "1 - LEAST_SHARE / steps",
        (*PLUS_PLUS, "algorithms/test_annealing::test_step_weights"),
    ),
    Breakage(
        "first order that stops the derivative by α, too",
        "maml/maml.py",
        "            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}\n",
        "            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}\n"
        "            alpha = {name: tf.stop_gradient(tf.convert_to_tensor(rate, theta[name].dtype)) for name, rate in "
        "alpha.items()}\n",
        (*PLUS_PLUS, "algorithms/test_family::test_the_gradient_by_theta_and_by_alpha_is_the_one_by_hand"),
    ),
    Breakage(
        "a body that learns nothing through ANIL's inner gradient",
        "maml/algorithms/anil.py",
        "inputa = body(weights, task.inputa)",
        "inputa = tf.stop_gradient(body(weights, task.inputa))",
        ("algorithms/test_family::test_a_body_computed_once_is_a_body_computed_in_every_step",),
    ),
    Breakage(
        "every replica takes the first part of the batch",
        "maml/devices/replicas.py",
        "found.append(compute(Part(number, replicas)))",
        "found.append(compute(Part(number * 0, replicas)))",
        REPLICAS,
    ),
    Breakage(
        "gradients summed over the replicas, not averaged",
        "maml/devices/replicas.py",
        "lambda value: value / replicas, total(compute)",
        "lambda value: value, total(compute)",
        REPLICAS,
    ),
    Breakage(
        "the mean of a part rounded before those of the others are added",
        "maml/training/updates.py",
        "return exact(model.of_part(part).gradient(weights, episodes, iteration))",
        "return exact(rounded(model.of_part(part).gradient(weights, episodes, iteration), weights))",
        REPLICAS,
    ),
    Breakage(
        "means halfway between two float32 numbers rounded as their last bit has it",
        "maml/parallel.py",
        "mean * _OFF_HALFWAY",
        "mean",
        ("core/test_parallel", "training/test_accumulate"),
    ),
    Breakage(
        "Reptile's replicas hand Adam's state on as if each had the whole batch",
        "maml/algorithms/reptile.py",
        "return Reptile(self.config, self.model, part)",
        "return self",
        REPLICAS,
    ),
    Breakage(
        "the restored state not sent to the other workers",
        "maml/training/loop.py",
        "self.state = replicas.from_chief(self.state)",
        "pass",
        ("devices/test_workers::test_a_killed_worker_is_noticed_and_all_go_on_to_the_bit",),
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
        files = ["tests/" + re.sub(r"^[^:]+", r"\g<0>.py", name) for name in breakage.tests]  # or file::test
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *files]
        output = subprocess.run(command, cwd=copy, capture_output=True, text=True).stdout
    return re.findall(r"^(?:FAILED|ERROR) tests/\w+/test_(\S+)", output, re.MULTILINE)


def summary(failed: list[str]) -> str:
    """Failing tests by file and function, with how many cases of each."""
    counts: dict[str, int] = {}
    for test in failed:
        name = test.split("[")[0].replace(".py::", ": ")
        counts[name] = counts.get(name, 0) + 1
    return "<br>".join(f"{name}" + (f" ({count})" if count > 1 else "") for name, count in counts.items())


def main() -> int:
    """Writes the table of tests/README.md; 1 if a breakage went unnoticed."""
    target, words = ROOT / "tests" / "README.md", sys.argv[1:]
    head, _, table = target.read_text(encoding="utf-8").partition("| broken |")
    before = {line.split(" (`")[0]: line for line in table.splitlines()}
    lines = ["| broken | tests that fail |", "|---|---|"]
    unnoticed = 0
    for breakage in BREAKAGES:
        kept = before.get(f"| {breakage.name}", "")
        if words and not any(word in breakage.name + breakage.file for word in words):
            lines += [kept] if kept else []
            continue
        found = summary(failures(breakage))
        unnoticed += not found
        lines.append(f"| {breakage.name} (`{breakage.file}`) | {found or '**none**'} |")
        print(lines[-1], flush=True)
    target.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
