"""Draws the README's figures into docs/figures/ from the runs of the README's commands.

  python -m benchmarks.figures                     all of them
  python -m benchmarks.figures sinusoid            those of the sinusoid
  python -m benchmarks.figures family              what the members of MAML's family adapt and learn; needs no run
  python -m benchmarks.figures --iterations=2000 --logs=logs/quick    a quick look

A run that is there is drawn as it stands; one that is missing is trained first.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.measure import count
from maml import algorithms
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError
from maml.maml import MAML
from maml.training import checkpoints
from maml.training.evaluation import results_file
from maml.training.runs import find_run
from maml.training.summaries import read_curve

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"

# The task of the curves, fixed before any of them was drawn.
AMPLITUDE, PHASE, POINTS_SEED = 4.0, 1.0, 0
STEPS = 10

# Okabe and Ito's colors, which every kind of color vision tells apart; markers differ besides.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"
PALE = "#A8C8DC"
LOOKS = {"MAML": (BLUE, "o"), "pretrained": (ORANGE, "s"), "oracle": (GREEN, "^")}


def sinusoid_runs(logs: str, iterations: int) -> dict[str, dict[str, Any]]:
    """The flags of the README's three sinusoid commands."""
    sine = {"datasource": "sinusoid", "norm": "None", "update_batch_size": 10, "update_lr": 0.001, "baseline": "None"}
    pretrained = {"pretrain_iterations": iterations, "metatrain_iterations": 0, "logdir": f"{logs}/pretrained/"}
    return {
        "MAML": sine | {"metatrain_iterations": iterations, "logdir": f"{logs}/sine/"},
        "pretrained": sine | pretrained,
        "oracle": sine | pretrained | {"baseline": "oracle"},
    }


def omniglot_run(logs: str, iterations: int, data_dir: str) -> dict[str, Any]:
    """The flags of the README's 5-way 1-shot command, with other iterations."""
    flags = {"datasource": "omniglot", "metatrain_iterations": iterations, "meta_batch_size": 32}
    flags |= {"update_batch_size": 1, "update_lr": 0.4, "num_updates": 1, "stop_grad": False}
    return flags | {"logdir": f"{logs}/omniglot5way/"} | ({"data_dir": data_dir} if data_dir else {})


def ready(flags: dict[str, Any]) -> tuple[Path, Config, dict[str, Any]]:
    """A run's folder, its setting and its newest checkpoint's test results; trains and tests what is missing.

    Raises:
        UserError: it cannot be trained or tested.
    """
    try:
        folder, config = find_run(flags)
    except UserError:
        run_main(flags)
        folder, config = find_run(flags)
    table = results_file(folder, config, ".json")
    newest = checkpoints.choose(folder, "latest", -1).prefix.name
    results = json.loads(table.read_text()) if table.exists() else {}
    if (results.get("checkpoint"), results.get("split")) != (newest, "test"):
        run_main(flags | {"train": False, "test_set": True})
        results = json.loads(table.read_text())
    return folder, config, results


def run_main(flags: dict[str, Any]) -> None:
    """Runs main.py as the README does, on this terminal.

    Raises:
        UserError: it failed; it has said why.
    """
    command = ["main.py", *(f"--{name}={value}" for name, value in flags.items())]
    print("python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]]).returncode:
        raise UserError(f"this command failed: python {' '.join(command)}")


def curves(folder: Path, config: Config, support: np.ndarray, grid: np.ndarray) -> list[np.ndarray]:
    """What a run's network predicts on `grid` before adaptation and after steps 1, 2, …: STEPS + 1 arrays [points].

    Args:
        support: x of the support points of the task y = AMPLITUDE · sin(x − PHASE).
        grid: x where to predict.
    """

    def inputs(x: np.ndarray) -> tf.Tensor:
        known = [AMPLITUDE, PHASE] if config.baseline == "oracle" else []
        return tf.constant([[point, *known] for point in x], config.dtype)

    model = MAML(config)
    state, _ = checkpoints.restore(checkpoints.choose(folder, "latest", -1), model)
    labels = [tf.constant(true_function(x)[:, None], config.dtype) for x in (support, grid)]
    task = Episodes(inputs(support), labels[0], inputs(grid), labels[1])
    before = model.model.apply(state.weights, task.inputb)
    after = model.task_metalearn(state.weights, task, STEPS, every_step=True).outputbs
    return [np.ravel(outputs) for outputs in (before, *after)]


def true_function(x: np.ndarray) -> np.ndarray:
    """The task of the curves."""
    return AMPLITUDE * np.sin(x - PHASE)


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """What a summary writer's folder holds under a tag, by iteration."""
    found = read_curve(folder, tag)
    if not found:
        raise UserError(f"{folder}: has no TensorBoard values of {tag!r}; train this run with --log and --val_tasks")
    return {point.iteration: point.value for point in found}


def draw_curves(predictions: dict[str, list[np.ndarray]], support: np.ndarray, grid: np.ndarray, path: Path) -> None:
    """A panel a method: the true function, the support points, the prediction before and after 1 and 10 steps."""
    figure, panels = subplots(1, len(predictions), (11, 3.9), sharey=True)
    lines = {
        "before": (0, {"color": GRAY, "linestyle": ":"}),
        "after 1 step": (1, {"color": ORANGE, "linestyle": "--"}),
        f"after {STEPS} steps": (STEPS, {"color": BLUE}),
    }
    for panel, (name, outputs) in zip(panels, predictions.items(), strict=True):
        panel.plot(grid, true_function(grid), color="black", linewidth=5, alpha=0.2, label="true function")
        panel.plot(support, true_function(support), "kD", markersize=5, label="support points")
        for label, (step, look) in lines.items():
            panel.plot(grid, outputs[step], linewidth=1.8, label=label, **look)
        panel.set(xlabel="x", title=name, xlim=(-5, 5))
    panels[0].set_ylabel("y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    save(figure, path)


def draw_steps(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean squared error over the number of gradient steps, with 95 % intervals."""
    figure, [panel] = subplots(1, 1, (6.4, 4))
    for shift, (name, result) in zip((-0.08, 0, 0.08), results.items(), strict=True):
        steps = np.arange(len(result["mean"])) + shift  # side by side, or the intervals hide one another
        look = {"color": LOOKS[name][0], "marker": LOOKS[name][1], "markersize": 5}
        panel.errorbar(steps, result["mean"], result["ci95"], capsize=3, label=name, **look)
    panel.set(yscale="log", xlabel="gradient steps (0: support set, before)", xticks=range(STEPS + 1))
    panel.set(ylabel="mean squared error, log scale")
    tasks = next(iter(results.values()))["tasks"]
    panel.set_title(f"Sinusoid, 10-shot, {tasks} test tasks, 95 % intervals")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    save(figure, path)


def draw_omniglot(result: dict[str, Any], train: dict[int, float], val: dict[int, float], path: Path) -> None:
    """Accuracy over the number of gradient steps, and over the training."""
    figure, (left, right) = subplots(1, 2, (10, 3.8))
    mean, ci95 = (100 * np.array(result[name]) for name in ("mean", "ci95"))
    left.errorbar(range(len(mean)), mean, ci95, color=BLUE, marker="o", markersize=5, capsize=3)
    left.axhline(100 / result["config"]["num_classes"], color=GRAY, linestyle=":")
    left.text(len(mean) - 1, 100 / result["config"]["num_classes"] + 2, "chance", color=GRAY, ha="right")
    for step, side in ((1, "left"), (len(mean) - 1, "right")):
        left.text(step, mean[step] - 8, f"{mean[step]:.1f} ± {ci95[step]:.1f}", ha=side)
    left.set(xlabel="gradient steps (0: support set, before)", ylabel="accuracy, %", xticks=range(len(mean)))
    left.set(ylim=(0, 103), title=f"After meta-training: {result['tasks']} test tasks, 95 % intervals")
    for values, look in (
        (train, {"color": ORANGE, "alpha": 0.5, "linewidth": 1, "label": "training tasks"}),
        (val, {"color": BLUE, "marker": "o", "markersize": 5, "label": "validation tasks"}),
    ):
        right.plot(list(values), 100 * np.array(list(values.values())), **look)
    steps = result["config"]["num_updates"]
    right.set(xlabel="meta-training iterations", ylabel=f"accuracy after {steps} step{'s'[: steps > 1]}, %")
    right.set(title="During meta-training", ylim=(0, 103))
    right.legend(loc="lower right", frameon=False)
    save(figure, path)


def draw_family(members: dict[str, Any], path: Path) -> None:
    """A panel a member: its layers after each inner step, α between them, and below the query losses that count."""
    figure, panels = subplots(
        1, len(members), (14, 3.9), width_ratios=[max(2, steps_drawn(m)) for m in members.values()]
    )
    for panel, (name, member) in zip(panels, members.items(), strict=True):
        draw_member(panel, member)
        panel.set_title(name)
    boxes = {"adapted to the task": ORANGE, "as meta-learned": PALE, "learned batch-norm of the step": GREEN}
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=label) for label, color in boxes.items()]
    handles.append(Patch(color="none", label="L: a query loss that counts"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def steps_drawn(member: Any) -> int:
    """At most three, which show as much as more would."""
    return min(3, member.config.num_updates)


def draw_member(panel: Any, member: Any) -> None:
    """See `draw_family`."""
    from matplotlib.patches import Rectangle

    config, steps, layers = member.config, steps_drawn(member), member.model.layers
    adapted = {int(re.sub(r"\D", "", name)) for name in member.adapted}
    rate = {"none": "α", "weight": "learned\nα per\nweight", "step": "α{}"}[config.learn_rates]
    for step in range(steps + 1):
        for layer in range(1, layers + 1):
            color = ORANGE if step and layer in adapted else PALE
            panel.add_patch(Rectangle((2 * step, layers - layer), 1, 0.9, facecolor=color))
            if config.per_step_bn and layer < layers:
                panel.add_patch(Rectangle((2 * step + 0.8, layers - layer), 0.2, 0.9, color=GREEN))
        if step < steps:
            panel.annotate("", (2 * step + 2, layers / 2), (2 * step + 1, layers / 2), arrowprops={"arrowstyle": "->"})
            panel.text(2 * step + 1.5, layers / 2 + 0.2, rate.format("₁₂₃"[step]), ha="center", va="bottom", fontsize=8)
        counts = step == steps or (step and config.multi_step_loss_num_epochs)
        panel.text(2 * step + 0.5, -0.75, "L" if counts else "", ha="center", weight="bold", color=BLUE)
    order = "first order" if config.stop_grad else "second order"
    panel.annotate("", (0.5, -1.1), (2 * steps + 0.5, -1.1), arrowprops={"arrowstyle": "->", "color": BLUE})
    panel.text(steps + 0.5, -1.65, f"∂L/∂θ, {order}", ha="center", color=BLUE, fontsize=9)
    panel.set(
        xlim=(-0.2, 2 * steps + 1.2), ylim=(-1.9, layers + 0.1), xticks=[2 * step + 0.5 for step in range(steps + 1)]
    )
    panel.set_xticklabels(["θ", *(f"step {step}" for step in range(1, steps + 1))])
    panel.set(yticks=[layers - layer + 0.45 for layer in range(1, layers + 1)])
    panel.set_yticklabels([*(f"layer {layer}" for layer in range(1, layers)), "head"], fontsize=8)
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)


def subplots(rows: int, columns: int, size: tuple[float, float], **options: Any):
    """A figure and its panels in a row, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for panel in panels[0]:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels[0]


def save(figure: Any, path: Path) -> None:
    """Writes the PNG and says so."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    print(f"Drawn: {path}")


def sinusoid(options: argparse.Namespace) -> None:
    """Draws sinusoid.png and sinusoid_steps.png."""
    support, grid = np.random.default_rng(POINTS_SEED).uniform(-5, 5, 10), np.linspace(-5, 5, 201)
    predictions, results = {}, {}
    for name, flags in sinusoid_runs(options.logs, options.iterations).items():
        folder, config, results[name] = ready(flags)
        predictions[name] = curves(folder, config, support, grid)
    draw_curves(predictions, support, grid, options.output / "sinusoid.png")
    draw_steps(results, options.output / "sinusoid_steps.png")


def omniglot(options: argparse.Namespace) -> None:
    """Draws omniglot.png."""
    folder, _, result = ready(omniglot_run(options.logs, options.omniglot_iterations, options.data_dir))
    train, val = (scalars(folder / split, "accuracy/Post-update") for split in ("train", "val"))
    draw_omniglot(result, train, val, options.output / "omniglot.png")


def family(options: argparse.Namespace) -> None:
    """Draws family.png from the learners themselves."""
    members: dict[str, dict[str, Any]] = {"MAML": {}, "first order": {"stop_grad": True}}
    members |= {name: {"algorithm": name.lower().replace("-", "")} for name in ("ANIL", "Meta-SGD", "MAML++")}
    flags = {"datasource": "omniglot", "num_updates": 5}
    learners = {
        name: algorithms.build(Config.from_flags(flags | own | ({"num_updates": 1} if name == "Meta-SGD" else {})))
        for name, own in members.items()
    }
    draw_family(learners, options.output / "family.png")


def main(arguments: list[str] | None = None) -> int:
    """Draws the figures; returns the exit code."""
    drawings = {"sinusoid": sinusoid, "omniglot": omniglot, "family": family}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", choices=[*drawings, []], help="which (default: all)")
    parser.add_argument("--logs", default="logs", help="folder of the runs' --logdir folders")
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder of the PNGs")
    parser.add_argument("--iterations", type=count, default=70000, help="of a sinusoid run that is missing")
    parser.add_argument("--omniglot_iterations", type=count, default=4000, help="of an Omniglot run that is missing")
    parser.add_argument("--data_dir", default="", help="folder of Omniglot's images (default data/omniglot)")
    options = parser.parse_args(arguments)
    try:
        for name in options.figures or drawings:
            drawings[name](options)
    except UserError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
