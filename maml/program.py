"""Meta-trains and meta-tests MAML, and other algorithms, on sinusoid regression, Omniglot and miniImageNet.

  python main.py                                  trains (sinusoid unless --datasource says otherwise)
  python main.py --train=False --test_set=True    tests the run last trained
  python main.py --predict --support=DIR --query=DIR
                                                  classifies images with the run last trained
  python main.py --check_gradients                proves the meta-gradient of the model that the flags describe

The README lists the commands of the paper; every flag of the official code keeps its name,
meaning and default.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from absl import app, flags

from maml.config import Config, names_of
from maml.errors import UserError
from maml.training.runs import find_run


def define_flags() -> None:
    """One absl flag for every field of `Config`."""
    for field in dataclasses.fields(Config):
        default: Any = field.default
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, default, choices, help_text)
        elif isinstance(default, bool):
            flags.DEFINE_bool(field.name, default, help_text)
        elif isinstance(default, int) and field.type in (int, "int"):
            flags.DEFINE_integer(field.name, default, help_text)
        elif isinstance(default, str):
            flags.DEFINE_string(field.name, default, help_text)
        else:
            flags.DEFINE_float(field.name, default, help_text)


def given_flags() -> dict[str, Any]:
    """The values of the flags that were given on the command line."""
    names = [field.name for field in dataclasses.fields(Config)]
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}


@contextlib.contextmanager
def quiet_stderr():
    """Holds back what C++ prints on stderr, and shows it only if the block fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def set_up_tensorflow(config: Config) -> None:
    """Imports TensorFlow without its log lines and starts its devices."""
    with quiet_stderr():
        import tensorflow as tf

        from maml.parallel import set_up_threads

        tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # already started
                tf.config.experimental.set_memory_growth(gpu, True)
        set_up_threads(config)
        tf.config.list_logical_devices()


# Shown at the start even at their default.
ALWAYS_SHOWN = {
    "algorithm",
    "datasource",
    "num_classes",
    "update_batch_size",
    "meta_batch_size",
    "metatrain_iterations",
}
ALWAYS_SHOWN |= {"meta_lr", "update_lr", "num_updates", "norm", "seed"}


def print_setting(config: Config) -> None:
    """Prints the setting, a line a kind: what matters, and what is not at its default."""
    print("Setting (what is not named has its default):")
    for kind, title in (("network", "network"), ("training", "training"), ("watch", "run"), ("call", "this call")):
        values = {name: getattr(config, name) for name in names_of(kind) if config.uses(name)}
        shown = [f"{k}={v}" for k, v in values.items() if k in ALWAYS_SHOWN or v != getattr(Config, k)]
        if shown:
            print(f"  {title + ':':<10} {' '.join(shown)}")


def run_training(config: Config) -> int:
    """Trains, and returns the exit code."""
    from maml import algorithms
    from maml.data_generator import DataGenerator
    from maml.training.loop import train
    from maml.training.memory import check_memory
    from maml.training.runs import lock_run, open_run

    check_memory(config)
    data = DataGenerator(config, ("train", "val") if config.val_tasks else ("train",))
    with lock_run(config):
        folder, notes = open_run(config, data.fingerprint)
        print_setting(config)
        for note in notes:
            print(note)
        trained = train(config, algorithms.build(config), data, folder)
    done = trained.progress.iteration
    if not trained.finished:
        print(f"\nStopped at iteration {done} and saved; the same command goes on from there.")
        return 130
    if trained.iterations:
        now = "" if trained.iterations == done else f", {trained.iterations} of them now,"
        print(f"Trained: {done} iterations{now} in {trained.seconds:.0f} s.")
    else:
        print(f"This run is already finished: {done} iterations.")
    if trained.progress.skipped:
        print(f"Skipped: {trained.progress.skipped} updates that were not finite (--on_nan=skip).")
    print(f"Checkpoints: {folder}")
    if config.log:
        print(f"TensorBoard: tensorboard --logdir={folder.parent}")
    print(f"Test it:     {sys.executable} main.py --train=False --test_set=True --logdir={folder.parent}")
    return 0


def run_test(config: Config, folder: Path) -> int:
    """Tests the run in a folder, and returns the exit code."""
    from tqdm import tqdm

    from maml import algorithms
    from maml.data_generator import DataGenerator
    from maml.learner import Learner
    from maml.training import checkpoints
    from maml.training.evaluation import Evaluator, TestResult, result_table, write_results
    from maml.training.memory import check_memory

    check_memory(config)
    print_setting(config)
    checkpoint = checkpoints.choose(folder, config.test_checkpoint, config.test_iter)
    model = algorithms.build(config)
    state, _ = checkpoints.restore(checkpoint, model)
    if config.export_dir:
        export(Learner(config, model, state.weights, checkpoint.prefix))
    split = "test" if config.test_set else "val"
    evaluator = Evaluator(model, DataGenerator(config, (split,)))
    print(f"Testing {checkpoint.prefix} on {config.test_tasks} {split} tasks")
    measures = evaluator.tasks(
        state.weights,
        split,
        config.test_tasks,
        config.evaluation_updates,
        progress=lambda blocks: tqdm(blocks, unit="block", disable=None, leave=False),
    )
    values = measures["accuracy" if config.classification else "loss"]
    result = TestResult.of(values)
    columns = model.columns(config.evaluation_updates)
    table = write_results(folder, config, values, result, columns, checkpoint.prefix.name)
    print(result_table(result, config, columns))
    print(f"Written to {table} (and .pkl, .json)")
    return 0


def run_predict(config: Config, folder: Path) -> int:
    """Classifies a folder of images by the run in a folder, exports the model, or both; returns the exit code."""
    from maml.learner import learner_of
    from maml.prediction import predict_folder, write_predictions

    print_setting(config)
    learner = learner_of(config, folder)
    if config.export_dir:
        export(learner)
    if config.support or config.query or not config.export_dir:
        predictions = predict_folder(learner, config.support, config.query)
        if config.predict_csv:
            write_predictions(Path(config.predict_csv), predictions)
        print(
            f"{learner.checkpoint}, adapted to {predictions.support} images of {len(predictions.classes)} classes "
            f"in {config.evaluation_updates} updates"
        )
        if config.transductive:
            print("All queries share one batch-norm; with --bn_mode=support each prediction stands on its own")
        width = max(map(len, predictions.files))
        for name, label, probability in predictions.rows():
            print(f"{name:<{width}}  {label}  {probability:.3f}")
        if config.predict_csv:
            print(f"Written to {config.predict_csv}")
    return 0


def export(learner) -> None:
    """Exports a learner to --export_dir and says so."""
    with quiet_stderr():
        learner.export(learner.config.export_dir)
    print(f"Exported to {learner.config.export_dir}")


def run_gradient_check(config: Config) -> int:
    """Compares the model's meta-gradient with central differences; exit code 1 if it is not exact."""
    from maml.data_generator import DataGenerator
    from maml.maml import MAML
    from maml.training.gradient_check import TASKS, check_gradients

    print_setting(config)
    config = config.replace(dtype="float64")
    model = MAML(config)
    episodes = DataGenerator(config, ("train",)).episodes("train", 0, min(config.meta_batch_size, TASKS))
    report = check_gradients(model, model.init_state().weights, episodes, seed=config.seed)
    print("\n".join(report.lines()))
    return 0 if report.exact else 1


def run(config: Config, folder: Path | None) -> int:
    """Does what the flags say, with the run in a folder if it is of one, and returns the exit code."""
    import tensorflow as tf

    try:
        if config.check_gradients:
            return run_gradient_check(config)
        if folder is None:
            return run_training(config)
        return run_predict(config, folder) if config.predict else run_test(config, folder)
    except tf.errors.OpError as error:
        if "events.out.tfevents" in error.message:
            reason = error.message.split("}} ")[-1].splitlines()[0]
            raise UserError(f"{reason}: TensorBoard's file could not be written; free some space") from error
        if isinstance(error, tf.errors.ResourceExhaustedError):
            sizes = "--meta_batch_size, --update_batch_size, --num_updates or --num_filters"
            raise UserError(f"the memory is full; lower {sizes}") from error
        raise


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, and returns what is none; a flag that cannot be parsed ends the program with one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"main.py: {' '.join(str(error).split())} (--help lists the flags)", file=sys.stderr)
        sys.exit(1)


def main(argv: list[str]) -> int:
    """Trains, tests or predicts; bad input ends with one line and exit code 1."""
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]}: not a flag; write --flag=value (--help lists them)")
        given = given_flags()
        if (given.get("predict") or given.get("train") is False) and not given.get("check_gradients"):
            folder, config = find_run(given)
        else:
            folder, config = None, Config.from_flags(given)
        set_up_tensorflow(config)
        return run(config, folder)
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1


GROUPS = {
    "network": "What is learned, by which network",
    "training": "How it is trained (a run with another value is another run, with a folder of its own)",
    "watch": "How a training is watched and saved (may change when a run goes on)",
    "call": "What to do, and how to test (of one call)",
}


def help_lines() -> list[str]:
    """What --help prints: examples, then the flags by what they are for."""
    lines = [*__doc__.splitlines()]
    for kind, title in GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names_of(kind):
            field = Config.__dataclass_fields__[name]
            choices = "|".join(field.metadata["choices"])
            lines.append(f"  --{name}={choices or field.default!r}")
            lines += textwrap.wrap(field.metadata["help"], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def start() -> None:
    """The program `main.py`, and `maml` where the package is installed."""
    if not (3, 10) <= sys.version_info < (3, 14):
        sys.exit("TensorFlow 2.21 runs on Python 3.10 to 3.13: use one of these")
    for stream in (sys.stdout, sys.stderr):  # names of files and classes survive every terminal
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
        print("\n".join(help_lines()))
        sys.exit(0)
    define_flags()
    app.run(main, flags_parser=parse)
