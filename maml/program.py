"""Meta-trains and meta-tests MAML, and other algorithms, on sinusoid regression, Omniglot and miniImageNet.

  python main.py                                  trains (sinusoid unless --datasource says otherwise)
  python main.py --train=False --test_set=True    tests the latest run
  python main.py --predict --support=DIR --query=DIR
                                                  classifies images with the latest run
  python main.py --demo                           shows a page to draw on (pip install -r requirements-demo.txt)
  python main.py --check_gradients                proves the meta-gradient of the model that the flags describe

The README lists the commands of the paper; every flag of the official code keeps its name,
meaning and default.
"""

import contextlib
import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from maml import __version__, commands
from maml.config import Config, names_of
from maml.config.record import expanded
from maml.devices.cluster import Cluster, agreed, from_environment, together
from maml.errors import UserError, one_line
from maml.files import write_text
from maml.machine import cores, processor, versions
from maml.terminal import quiet_stderr, styled, table
from maml.training.runs import RUN_FILE, check_data_dir, find_run, load_config

if TYPE_CHECKING:
    import tensorflow as tf

    from maml.algorithms.protocol import Algorithm
    from maml.data_generator import DataGenerator


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
    return expanded({name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present})


def set_up_tensorflow(config: Config, cluster: Cluster | None) -> "tf.distribute.Strategy":
    """Imports TensorFlow without its log lines and starts its devices: those of this process, and of other workers."""
    with quiet_stderr():
        import tensorflow as tf

        from maml.devices.start import strategy
        from maml.parallel import set_up_threads

        tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # already started
                tf.config.experimental.set_memory_growth(gpu, True)
        set_up_threads(config)
        return strategy(config.devices, cluster)


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
    print(f"{styled('Setting', 'bold')} (flags not shown have their defaults):")
    for kind, title in (("network", "network"), ("training", "training"), ("watch", "run"), ("call", "this call")):
        values = {name: getattr(config, name) for name in names_of(kind) if config.uses(name)}
        shown = [f"{k}={v}" for k, v in values.items() if k in ALWAYS_SHOWN or v != getattr(Config, k)]
        if shown:
            print(f"  {styled(f'{title}:'.ljust(10), 'cyan')} {' '.join(shown)}")


def left_out(data, folder: Path) -> list[str]:
    """Writes the names of the classes that are too small for the tasks to a file, and says how many they are."""
    if not data.left_out:
        return []
    target = folder / "left_out.txt"
    write_text(target, "".join(f"{split} {name}\n" for split, names in data.left_out.items() for name in names))
    counts = ", ".join(f"{len(names)} of {split}" for split, names in data.left_out.items())
    return [f"Classes with too few images for the tasks are left out: {counts} (named in {target})"]


def data_notes(config: Config) -> list[str]:
    """What of your own images lies in more than one split."""
    from maml.tasks.class_folders import shared_between_splits

    if config.datasource != "folder" or not config.data_dir:
        return []
    try:
        lines = shared_between_splits(config.data_dir)
    except UserError as error:  # of a split that is not needed now
        lines = [str(error)]
    return [f"warning: {line}" for line in lines]


def run_training(config: Config, notes: list[str]) -> int:
    """Trains, and returns the exit code; `notes` are printed below the setting."""
    from maml import algorithms
    from maml.data_generator import DataGenerator
    from maml.devices import replicas
    from maml.training.loop import train
    from maml.training.memory import check_memory
    from maml.training.runs import lock_run, open_run, run_folder

    replicas.check_divides(config.meta_batch_size, config.accumulate)
    check_memory(config)
    data = DataGenerator(config, ("train", "val") if config.val_tasks else ("train",))
    config = data.config
    if not replicas.is_chief():
        return 0 if train(config, algorithms.build(config), data, run_folder(config)).finished else 130
    notes = [*notes, *data_notes(config)]
    with lock_run(config):
        folder, run_notes = open_run(config, data.fingerprint)
        print_setting(config)
        for note in [*notes, *run_notes, *left_out(data, folder)]:
            print(note)
        trained = train(config, algorithms.build(config), data, folder)
    done = trained.progress.iteration
    if not trained.finished:
        print(f"\nStopped at iteration {done} and saved; run the same command to resume.")
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
        print(f"TensorBoard: {commands.quoted(['tensorboard', f'--logdir={folder.parent}'])}")
    ensemble = ["--test_checkpoint=ensemble"] if config.val_tasks and config.keep_best > 1 else []
    test = commands.program("main.py", "--train=False", "--test_set=True", *ensemble, f"--logdir={folder}")
    print(f"{styled('Test it:', 'bold green')}     {test}")
    return 0


def run_test(config: Config, folder: Path) -> int:
    """Tests the run in a folder, and returns the exit code."""
    from maml import algorithms
    from maml.data_generator import DataGenerator
    from maml.devices import replicas
    from maml.learner import Learner
    from maml.training import checkpoints
    from maml.training.evaluation import TestResult, result_table, statistics_note, write_results
    from maml.training.memory import check_memory

    check_memory(config)
    if not replicas.is_chief():
        measured(algorithms.build(config), DataGenerator(config, ("test" if config.test_set else "val",)), [])
        return 0
    print_setting(config)
    model = algorithms.build(config)
    checkpoint, weights = checkpoints.restore_chosen(folder, config, model)
    if config.export_dir:
        export(Learner(config, model, weights, checkpoint))
    split = "test" if config.test_set else "val"
    check_data_dir(config, folder)
    data = DataGenerator(config, (split,))
    if data.left_out:
        print(f"Classes with too few images for the tasks are left out: {len(data.left_out[split])}")
    print(f"Testing {checkpoint} on {config.test_tasks} {split} tasks")
    measures = measured(model, data, weights if isinstance(weights, list) else [weights])
    values = measures["accuracy" if config.classification else "loss"]
    result = TestResult.of(values)
    columns = model.columns(config.evaluation_updates)
    newest = checkpoint.name == checkpoints.choose(folder, "latest", -1).prefix.name
    run = load_config(folder) if (folder / RUN_FILE).exists() else config
    written = write_results(folder, config, run, values, result, columns, checkpoint.name, newest)
    if note := statistics_note(config):
        print(note)
    print(table(*result_table(result, config, columns), model.reported))
    print(f"Written to {written} (and .pkl, .json)")
    return 0


def measured(model: "Algorithm", data: "DataGenerator", weights: list) -> dict:
    """What a test measures of the weights of one checkpoint, or of several; each worker has a part of the tasks.

    Args:
        weights: [] on other workers than the chief, who get the chief's.
    """
    from tqdm import tqdm

    from maml.devices import replicas
    from maml.training.evaluation import Evaluator

    config = model.config
    replicas.check_alike({"data": data.fingerprint})
    members = replicas.number_of_chief(len(weights))
    weights = replicas.from_chief(weights or [model.init_state().weights] * members)
    return Evaluator(model, data).tasks(
        weights if members > 1 else weights[0],
        "test" if config.test_set else "val",
        config.test_tasks,
        config.evaluation_updates,
        progress=lambda blocks: tqdm(blocks, unit="block", disable=replicas.silent(), leave=False),
    )


def run_predict(config: Config, folder: Path) -> int:
    """Classifies a folder of images by the run in a folder, exports the model, or both; returns the exit code."""
    from maml.learner import learner_of
    from maml.prediction import predict_folder, write_confusion, write_predictions

    print_setting(config)
    learner = learner_of(config, folder)
    if config.export_dir:
        export(learner)
    if config.support or config.query or not config.export_dir:
        predictions = predict_folder(learner, config.support, config.query)
        written = []
        if config.predict_csv:
            written.append(Path(config.predict_csv))
            write_predictions(written[0], predictions)
        if config.predict_csv and predictions.truth:
            written.append(written[0].with_suffix(".confusion.png"))
            write_confusion(written[1], predictions)
        for note in predictions.notes:
            print(f"note: {note}")
        print(
            f"{learner.checkpoint}, adapted to {predictions.support} images of {len(predictions.classes)} classes "
            f"in {config.evaluation_updates} updates"
        )
        if config.transductive:
            print("All queries share one batch-norm; with --bn_mode=support each prediction stands on its own")
        width = max(map(len, predictions.files))
        for name, label, probability in predictions.rows():
            print(f"{name:<{width}}  {label}  {probability:.3f}")
        if predictions.truth:
            print(predictions.report())
        if written:
            print(f"Written to {' and '.join(map(str, written))}")
    return 0


def export(learner) -> None:
    """Exports a learner to --export_dir and says so."""
    with quiet_stderr():
        learner.export(learner.config.export_dir)
    print(f"Exported to {learner.config.export_dir}")


def run_gradient_check(config: Config) -> int:
    """Compares the model's meta-gradient with central differences; exit code 1 if it is not exact."""
    from maml import algorithms
    from maml.data_generator import DataGenerator
    from maml.maml import MAML
    from maml.training.gradient_check import TASKS, check_gradients

    print_setting(config)
    config = config.replace(dtype="float64")
    data = DataGenerator(config, ("train",))
    model = algorithms.build(data.config)
    assert isinstance(model, MAML)  # the flag is for MAML and its family alone
    episodes = data.episodes("train", 0, min(config.meta_batch_size, TASKS))
    report = check_gradients(model, model.init_state().weights, episodes, seed=config.seed)
    print("\n".join(report.lines()))
    return 0 if report.exact else 1


def run(config: Config, folder: Path | None, notes: list[str]) -> int:
    """Does what the flags say, with the run in a folder if it is of one, and returns the exit code.

    Args:
        notes: on what was understood; for the user.
    """
    import tensorflow as tf

    from maml.devices import replicas

    try:
        if config.check_gradients:
            return run_gradient_check(config)
        if folder is None:
            return run_training(config, notes)
        return run_predict(config, folder) if config.predict else run_test(config, folder)
    except tf.errors.OpError as error:
        if lost := replicas.lost(error):
            raise lost from error
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
        print(f"main.py: {one_line(error)} (--helpfull lists the flags)", file=sys.stderr)
        sys.exit(1)


def run_demo(given: dict[str, Any]) -> int:
    """Shows the page until Ctrl-C."""
    with quiet_stderr():
        from maml.demo.page import demo
    from maml.learner import load

    page = demo(load(given["logdir"]) if "logdir" in given else None)
    with contextlib.suppress(KeyboardInterrupt):
        page.block_thread()
    return 0


def resolved(given: dict[str, Any]) -> dict[str, Any]:
    """What the given flags mean, ready for JSON: the whole setting, the run that is tested, and notes for the user."""
    if (given.get("predict") or given.get("train") is False) and not given.get("check_gradients"):
        folder, config = find_run(given)
        if config.datasource == "own":
            from maml.learner import refuse_own

            refuse_own(config, folder)
        return {"config": config.to_dict(), "folder": str(folder), "notes": []}
    from maml.tasks.images import sized

    given, notes = sized(given)
    return {"config": Config.from_flags(given).to_dict(), "folder": "", "notes": notes}


def facts(given: dict[str, Any]) -> dict[str, str]:
    """What must be the same on all workers of a training: flags, but for folders, and versions."""
    flags_given = {f"--{name}": str(value) for name, value in given.items() if name not in ("logdir", "data_dir")}
    with quiet_stderr():
        return flags_given | versions() | {"maml": __version__}


def main(argv: list[str]) -> int:
    """Trains, tests or predicts; bad input ends with one line and exit code 1."""
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]}: not a flag; write --flag=value (--helpfull lists them)")
        given = given_flags()
        if given.get("demo"):
            return run_demo(given)
        cluster = from_environment()
        if cluster and (given.get("predict") or given.get("check_gradients")):
            raise UserError("--predict and --check_gradients are for one process: unset TF_CONFIG, or leave srun out")
        if cluster:  # before the meeting: behind it all start at once
            with quiet_stderr():
                import tensorflow  # noqa: F401
        found = agreed(cluster, facts(given), lambda: resolved(given)) if cluster else resolved(given)
        config = Config(**found["config"])
        if "data_dir" in given:  # each worker has its own
            config = config.replace(data_dir=given["data_dir"])
        with together(cluster):
            strategy = set_up_tensorflow(config, cluster)
        with strategy.scope():
            return run(config, Path(found["folder"]) if found["folder"] else None, found["notes"])
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside the training loop, which saves and says so
        print("main.py: interrupted; run the same command to resume or start over", file=sys.stderr)
        return 130


GROUPS = {
    "network": "What is learned, by which network",
    "training": "How it is trained (a run with another value is another run, with a folder of its own)",
    "watch": "How a training is watched and saved (may change when a run goes on)",
    "call": "What to do, and how to test (of one call)",
}


# What people need first: --help shows these alone.
FIRST = (
    *("datasource", "data_dir", "num_classes", "update_batch_size", "algorithm", "num_updates", "update_lr"),
    *("meta_batch_size", "metatrain_iterations", "logdir", "train", "test_set"),
)


def help_lines(full: bool) -> list[str]:
    """What --help prints: examples, and the flags that are needed first; with --helpfull all, by what they are for."""
    groups = {title: names_of(kind) for kind, title in GROUPS.items()} if full else {"The most important flags": FIRST}
    lines = [*__doc__.splitlines()]
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        for name in names:
            field = Config.__dataclass_fields__[name]
            choices = "|".join(field.metadata["choices"])
            lines.append(f"  --{name}={choices or field.default!r}")
            lines += textwrap.wrap(field.metadata["help"], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines if full else [*lines, "", "--helpfull lists all flags, --version shows versions and devices."]


def version_lines() -> list[str]:
    """What --version prints: the versions, and what there is to compute with."""
    with quiet_stderr():
        import tensorflow as tf

        gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    names = {"python": "Python", "tensorflow": "TensorFlow", "numpy": "NumPy"}
    return [
        f"maml {__version__}",
        ", ".join(f"{names[package]} {version}" for package, version in versions().items()),
        f"{processor()}, {cores()} cores",
        f"GPU: {', '.join(gpu.get('device_name', 'GPU') for gpu in gpus) or 'none that TensorFlow can use'}",
    ]


def start() -> None:
    """The program `main.py`, and `maml` where the package is installed."""
    if not (3, 10) <= sys.version_info < (3, 14):
        sys.exit("TensorFlow 2.21 runs on Python 3.10 to 3.13: use one of these")
    for stream in (sys.stdout, sys.stderr):  # names of files and classes survive every terminal
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    asked = set(sys.argv[1:])
    if asked & {"--help", "-h", "-help", "--helpshort", "--helpfull"}:
        print("\n".join(help_lines("--helpfull" in asked)))
        sys.exit(0)
    if "--version" in asked:
        print("\n".join(version_lines()))
        sys.exit(0)
    define_flags()
    app.run(main, flags_parser=parse)
