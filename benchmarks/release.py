"""Makes a trained run ready to be given away: `pretrained/<name>/` with weights, setting, test and README.

  python -m benchmarks.release logs/sine/cls_5... sinusoid_10shot --note="..."
  python -m benchmarks.release logs/omniglot20way --unfinished

The weights alone, without Adam's state. The test is the official one of 600 tasks, on this machine. A run that is not
done keeps Adam's state, and goes on from its folder, `pretrained/unfinished/<exp_string>/`.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from benchmarks.figures import ROOT
from maml import algorithms, commands
from maml.config import Config
from maml.errors import UserError
from maml.files import read_json, write_json, write_text
from maml.training import checkpoints
from maml.training.runs import RUN_FILE, find_run, load_config

PRETRAINED = ROOT / "pretrained"
UNFINISHED = PRETRAINED / "unfinished"
LARGEST = 2**20  # bytes of a released run
IMAGENET = (
    "Trained on images of ImageNet, whose terms allow research and teaching only: the same holds for these weights."
)
OWN = "The weights are under the project's license (LICENSE)."


def command_of(config: Config) -> str:
    """The command that trains such a run."""
    usual = Config.from_flags({"datasource": config.datasource, "algorithm": config.algorithm})
    shown = {name: value for name, value in config.identity.items() if value != getattr(usual, name)}
    shown = {"datasource": config.datasource, "algorithm": config.algorithm} | shown
    shown |= {"metatrain_iterations": config.metatrain_iterations}
    return "python main.py " + commands.quoted([f"--{name}={value}" for name, value in shown.items()])


def release(run: Path, name: str, note: str, data_dir: str, which: str) -> Path:
    """Writes the folder.

    Raises:
        UserError: there is no such run, its test failed, or it is too large.
    """
    config, target = load_config(run), PRETRAINED / name
    model = algorithms.build(config)
    chosen = checkpoints.choose(run, which, -1)
    state, _ = checkpoints.restore(chosen, model)
    iteration = chosen.iteration
    with in_place_of(target) as new:
        checkpoints.save_weights(new / f"model{iteration}", model, state.weights)
        write_json(new / RUN_FILE, without_paths(read_json(run / RUN_FILE)))
        test = [sys.executable, "main.py", "--train=False", "--test_set=True", f"--logdir={new}"]
        done = subprocess.run(test + ([f"--data_dir={data_dir}"] if data_dir else []), cwd=ROOT)
        if done.returncode:
            raise UserError(f"{run}: its test failed")
        for path in [*new.glob("test_*.pkl"), *new.glob("test_*.csv")]:
            path.unlink()
        [tested] = new.glob("test_*.json")
        results = without_paths(read_json(tested))
        write_json(tested, results)
        write_text(new / "README.md", readme(name, config, iteration, results, note))
    return target


def hand_over(run: Path) -> Path:
    """Writes a run's newest checkpoint and setting to `pretrained/unfinished`, in place of an earlier one of this run.

    Adam's running means are written as bfloat16, which makes the file small enough: the training goes on from them as
    well, but not to the same bits.

    Raises:
        UserError: there is no such checkpoint, or it is too large.
    """
    chosen = checkpoints.choose(run, "latest", -1)
    reader = tf.train.load_checkpoint(str(chosen.prefix))
    tensors = {name: tf.constant(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
    means = {name: tf.cast(tensor, tf.bfloat16) for name, tensor in tensors.items() if re.search("/[mv]/", name)}
    target = UNFINISHED / run.name
    with in_place_of(target) as new:
        checkpoints.write(new / chosen.prefix.name, tensors | means)
        write_json(new / RUN_FILE, without_paths(read_json(run / RUN_FILE)))
    return target


def without_paths(record: dict) -> dict:
    """A run's or a test's record without the folders of this machine."""
    return record | {"config": record["config"] | {"data_dir": "", "logdir": ""}}


@contextlib.contextmanager
def in_place_of(target: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `target` when the block ends well.

    Raises:
        UserError: what was written is too large for the repository; the old folder, if there is one, stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new", dir=target.parent) as temporary:
        new = Path(temporary) / target.name
        new.mkdir()
        yield new
        if (size := sum(path.stat().st_size for path in new.iterdir())) > LARGEST:
            raise UserError(f"{target}: would have {size} bytes, more than {LARGEST}")
        if target.exists():
            target.rename(Path(temporary) / "old")
        new.rename(target)


def readme(name: str, config: Config, iteration: int, results: dict, note: str) -> str:
    """What stands beside the weights."""
    scale, unit = (100, " %") if config.classification else (1, "")
    rows = [
        f"| {label} | {scale * mean:.4g}{unit} ± {scale * ci:.2g} |"
        for label, mean, ci in zip(results["columns"], results["mean"], results["ci95"], strict=True)
    ]
    test = f"python main.py --train=False --test_set=True --logdir=pretrained/{name}"
    license = IMAGENET if config.datasource == "miniimagenet" else OWN
    whole = iteration == config.total_iterations
    count = f"{iteration:,} iterations" if whole else f"{iteration:,} of its {config.total_iterations:,} iterations"
    return "\n".join(
        [
            f"# {name}",
            "",
            f'`maml.load("pretrained/{name}")`, or `{test}`.',
            "",
            f"Trained by `{command_of(config)}`, {count}.",
            note,
            "",
            f"{results['tasks']} {results['split']} tasks, seed {results['seed']}: {results['measure']}, ± 95 %.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            license,
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Releases one run; bad input ends with one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run, or of the only run in it")
    parser.add_argument("name", nargs="?", help="of the folder under pretrained/")
    parser.add_argument("--note", help="time, hardware and commit of the training, for the README")
    parser.add_argument("--unfinished", action="store_true", help="only keep its newest checkpoint, to go on from")
    parser.add_argument("--data_dir", default="", help="where the images are")
    parser.add_argument("--test_checkpoint", choices=("latest", "best"), default="latest")
    args = parser.parse_args(arguments)
    if not args.unfinished and not (args.name and args.note):
        parser.error("a name and a --note are needed, or --unfinished")
    try:
        folder, _ = find_run({"logdir": args.run, "train": False})
        if args.unfinished:
            print(hand_over(folder))
            return 0
        print(release(folder, args.name, args.note, args.data_dir, args.test_checkpoint))
    except UserError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
