"""Run folders: where a run lives, what it was, and which one a test means.

`<logdir>/<exp_string>/run.json` keeps a run's flags and versions.
"""

import contextlib
import dataclasses
import datetime
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maml.config import Config
from maml.errors import UserError
from maml.files import locked, make_folder, read_json, write_json

RUN_FILE = "run.json"
REPLACED = ".replaced-"

# What a run's weights depend on: a folder that holds a run with another value is not ours.
NETWORK_FIELDS = (
    *("algorithm", "datasource", "num_classes", "image_size", "channels"),
    *("baseline", "norm", "conv", "num_filters", "max_pool", "dtype"),
)
# Flags that name a run: given with a test, they choose among the runs of a folder.
IDENTITY_FIELDS = (
    *(*NETWORK_FIELDS, "meta_batch_size", "num_updates", "stop_grad"),
    *(field.name for field in dataclasses.fields(Config) if field.metadata["label"]),
)
SHOT_AND_RATE = ("update_batch_size", "update_lr")
# Flags of one call, not of a run: a test does not inherit them.
CALL_FIELDS = (
    *("train", "test_iter", "test_set", "test_tasks", "test_checkpoint", "test_num_updates", "log", "resume", "tf32"),
    *("logdir", "train_update_batch_size", "train_update_lr", "check_gradients", "deterministic", "histograms"),
    *("predict", "support", "query", "predict_csv", "export_dir", "bn_mode"),
)
# Flags whose change, when a run is resumed, is no change of the training.
HARMLESS_FIELDS = (
    *CALL_FIELDS,
    *("metatrain_iterations", "data_dir", "save_interval", "summary_interval", "val_interval", "val_tasks"),
    *("eval_inner_iters", "eval_inner_batch"),
)


def run_folder(config: Config) -> Path:
    """`<logdir>/<exp_string>`; logdir is logs/<datasource> unless given."""
    return Path(config.logdir or f"logs/{config.datasource}") / config.exp_string


@contextlib.contextmanager
def lock_run(config: Config) -> Iterator[None]:
    """Keeps every other process from training in the folder of `config`.

    The lock stands beside the folder, which may be moved aside.

    Raises:
        UserError: another process trains there, or the log folder cannot be written.
    """
    folder = run_folder(config)
    make_folder(folder.parent)
    with locked(folder.with_name(f".{folder.name}.lock")):
        yield


def open_run(config: Config) -> tuple[Path, list[str]]:
    """Creates or checks the folder that `config` trains in.

    Returns:
        The folder, and notes about flags that differ from those the run was started with.

    Raises:
        UserError: the folder holds another run, or cannot be written.
    """
    folder = run_folder(config)
    notes = []
    if folder.exists() and not config.resume and any(folder.iterdir()):
        aside = folder.with_name(folder.name + REPLACED + time.strftime("%Y%m%d-%H%M%S"))
        folder.rename(aside)
        notes.append(f"The run that was in {folder} is now in {aside}")
    record = folder / RUN_FILE
    if record.exists():
        before = load_config(folder)
        for name in (*NETWORK_FIELDS, "pretrain_iterations"):
            if getattr(before, name) != getattr(config, name):
                raise UserError(
                    f"{folder} holds a run with --{name}={getattr(before, name)}, and this one has "
                    f"--{name}={getattr(config, name)}: choose another --logdir, or start over with --resume=False"
                )
        changed = [
            f"--{name} was {getattr(before, name)}, is {value}"
            for name, value in config.to_dict().items()
            if getattr(before, name) != value and (name not in HARMLESS_FIELDS or _schedules(config, name))
        ]
        if changed:
            notes.append("Going on with changed flags: " + "; ".join(changed))
    make_folder(folder)
    return folder, notes


def record_run(folder: Path, config: Config) -> None:
    """Writes the flags and versions of a training that begins, or goes on, into its folder."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
    write_json(folder / RUN_FILE, {"format": 1, "trained": now, "config": config.to_dict(), "versions": versions()})


def load_config(folder: Path) -> Config:
    """The flags of the run in a folder.

    Raises:
        UserError: its run.json is damaged.
    """
    record = folder / RUN_FILE
    values = read_json(record).get("config")
    if not isinstance(values, dict):
        raise UserError(f"{record}: has no config; remove or restore it")
    return Config.from_dict(values, str(record))


def find_run(given: dict[str, Any]) -> tuple[Path, Config]:
    """The run that a test with these given flags means, and the test's setting.

    It is the run last trained under --logdir (default logs) that agrees with the given flags
    that name a run; every given flag overrides the run's own. update_batch_size and update_lr
    name a run, too, as long as one has them; otherwise they are the test's. Without any such
    run, the folder that the official code would name, for checkpoints written by it.

    Raises:
        UserError: there is no run.
    """
    root = Path(given.get("logdir") or "logs")
    wanted = {name: value for name, value in given.items() if name in IDENTITY_FIELDS}
    for name in SHOT_AND_RATE:
        trained_with = given.get(f"train_{name}", -1)
        if trained_with != -1:
            wanted[name] = trained_with
    strict = wanted | {name: given[name] for name in SHOT_AND_RATE if name in given and name not in wanted}
    records = [path for depth in ("", "*/", "*/*/") for path in root.glob(depth + RUN_FILE)]
    folders = [path.parent for path in records if REPLACED not in path.parent.name]
    runs = [(folder, load_config(folder)) for folder in sorted(folders, key=_last_trained, reverse=True)]
    for choice in (strict, wanted):
        for folder, config in runs:
            if all(getattr(config, name) == value for name, value in choice.items()):
                values = {name: value for name, value in config.to_dict().items() if name not in CALL_FIELDS}
                test = Config(**(values | given | {"train": False}))
                test.validate(given)
                return folder, test
    config = Config.from_flags(given | {"train": False})
    folder = run_folder(config)
    if any(folder.glob("model*.index")):
        return folder, config
    if runs:
        others = ", ".join(str(folder) for folder, _ in runs[:3])
        raise UserError(f"no run under {root} agrees with the flags given; there are {others}")
    raise UserError(f"no run under {root} (looked for {RUN_FILE}, and for {folder}/model*.index): train one first")


def versions() -> dict[str, str]:
    """Versions of what computed a run."""
    import numpy as np
    import tensorflow as tf

    return {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__}


def _schedules(config: Config, name: str) -> bool:
    """Whether a flag's change bends a schedule: Reptile's meta-step falls over the whole training."""
    return name == "metatrain_iterations" and config.uses("meta_step") and config.meta_step != config.meta_step_final


def _last_trained(folder: Path) -> str:
    return str(read_json(folder / RUN_FILE).get("trained", ""))
