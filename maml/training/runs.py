"""Run folders: where a run lives, what it was, and which one a test means.

`<logdir>/<exp_string>/run.json` keeps a run's flags and versions.
"""

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maml.config import Config, names_of
from maml.config.checks import check
from maml.config.record import expanded, typed
from maml.errors import UserError
from maml.files import locked, make_folder, read_json, write_json
from maml.machine import versions

RUN_FILE = "run.json"
REPLACED = ".replaced-"

# A test may have other values of these than the run it tests.
OVERRIDDEN = ("update_batch_size", "update_lr", "query_size", "seed", "adapt")


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


def open_run(config: Config, fingerprint: dict[str, str] | None = None) -> tuple[Path, list[str]]:
    """Creates or checks the folder that `config` trains in.

    Args:
        fingerprint: of the data's content, by split; None: not looked at.

    Returns:
        The folder, and notes for the user.

    Raises:
        UserError: the folder holds another run, or cannot be written.
    """
    folder = run_folder(config)
    notes = []
    if folder.exists() and not config.resume and any(folder.iterdir()):
        aside = folder.with_name(folder.name + REPLACED + time.strftime("%Y%m%d-%H%M%S"))
        folder.rename(aside)
        notes.append(f"The run that was in {folder} is now in {aside}")
    if (folder / RUN_FILE).exists():
        before = load_config(folder)
        _check_same_run(folder, before, config)
        _check_same_data(folder, before, config, fingerprint or {})
        length = before.metatrain_iterations
        if length != config.metatrain_iterations and _schedules(config):
            now = config.metatrain_iterations
            notes.append(f"Going on with a changed schedule: --metatrain_iterations was {length}, is {now}")
    make_folder(folder)
    return folder, notes


def _check_same_run(folder: Path, before: Config, config: Config) -> None:
    for name, value in config.identity.items():
        if getattr(before, name) != value:
            raise UserError(
                f"{folder} holds a run with --{name}={getattr(before, name)}, and this one has "
                f"--{name}={value}: choose another --logdir, or start over with --resume=False"
            )


def _check_same_data(folder: Path, before: Config, config: Config, fingerprint: dict[str, str]) -> None:
    known = read_json(folder / RUN_FILE).get("data", {})
    changed = [split for split, content in fingerprint.items() if known.get(split, content) != content]
    if "train" in changed and config.datasource == "own":
        raise UserError(
            f"{folder} holds a run that was trained on other tasks (your function's source, your list of tasks or "
            "your images were others): choose another logdir, or start over with resume=False"
        )
    if "train" in changed:
        raise UserError(
            f"{folder} holds a run that was trained on other images ({before.data_dir or 'the default folder'}) than "
            f"those of {config.data_dir or 'the default folder'}: choose another --logdir, or start over with "
            "--resume=False"
        )


def record_run(folder: Path, config: Config, fingerprint: dict[str, str] | None = None) -> None:
    """Writes the flags, the versions and the data's fingerprint of a training that begins, or goes on."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
    values = config.to_dict()
    if config.data_dir:  # a test may start from another folder
        values["data_dir"] = os.path.abspath(config.data_dir)
    about = {"format": 1, "trained": now, "config": values, "versions": versions()}
    write_json(folder / RUN_FILE, about | ({"data": fingerprint} if fingerprint else {}))


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


def run_folders(root: Path) -> list[Path]:
    """The folders of runs that are this folder, in it, or in its folders; those that were moved aside are left out."""
    records = [path for depth in ("", "*/", "*/*/") for path in root.glob(depth + RUN_FILE)]
    return [path.parent for path in records if REPLACED not in path.parent.name]


def find_run(given: dict[str, Any]) -> tuple[Path, Config]:
    """The run that a test with these given flags means, and the test's setting.

    It is the latest run under --logdir (default logs) that agrees with the given flags
    on which a run's weights depend; every given flag overrides the run's own. If no run has the given
    shots, inner rate, queries or seed, they are the test's. Without any such run, the folder that the official code
    would name, for checkpoints written by it.

    Raises:
        UserError: there is no run.
    """
    given = expanded(typed(given))
    root = Path(given.get("logdir") or "logs")
    wanted = {name: value for name, value in given.items() if name in names_of("network", "training")}
    for name in ("update_batch_size", "update_lr"):
        if given.get(f"train_{name}", -1) != -1:
            wanted[name] = given[f"train_{name}"]
    loose = {
        name: value for name, value in wanted.items() if name not in OVERRIDDEN or given.get(f"train_{name}", -1) != -1
    }
    ways = loose.pop("num_classes", None)
    runs = [(folder, load_config(folder)) for folder in sorted(run_folders(root), key=_last_trained, reverse=True)]
    inherited = names_of("network", "training", "watch")
    for choice in (wanted, loose):
        for folder, config in runs:
            if choice is loose and config.adapts and ways not in (None, config.num_classes):
                continue  # an embedding can tell any number of classes apart, an output layer cannot
            if all(getattr(config, name) == value for name, value in choice.items()):
                values = {name: getattr(config, name) for name in inherited}
                test = Config(**(values | given | {"train": False}))
                check(test, given)
                return folder, test
    if given.get("datasource") == "own":
        raise UserError(f"{root}: no run of maml.train in it that agrees with the flags given")
    official = _official(given, bool(runs))
    if official and any(official[0].glob("model*.index")):
        return official
    if runs:
        others = ", ".join(f"{folder} with {_where_other(config, wanted)}" for folder, config in runs[:3])
        raise UserError(f"no run under {root} agrees with the flags given; there are {others}")
    assert official  # without other runs the flags fit, or it is said what is wrong with them
    folder = official[0]
    raise UserError(f"no run under {root} (looked for {RUN_FILE}, and for {folder}/model*.index): train one first")


def _official(given: dict[str, Any], others: bool) -> tuple[Path, Config] | None:
    """The folder that the official code would name for these flags; None if they do not fit without a run's others.

    Args:
        others: whether there are runs that these flags may be meant for.

    Raises:
        UserError: they do not fit, and there are no others.
    """
    try:
        config = Config.from_flags(given | {"train": False})
    except UserError:
        if others:
            return None
        raise
    return run_folder(config), config


def _where_other(config: Config, wanted: dict[str, Any]) -> str:
    return " ".join(f"--{name}={getattr(config, name)}" for name in wanted if getattr(config, name) != wanted[name])


def check_data_dir(config: Config, folder: Path) -> None:
    """Raises UserError if the images of a test are not where the run had them."""
    if config.data_dir and not os.path.isdir(config.data_dir):
        raise UserError(
            f"{config.data_dir}: no such folder; that is --data_dir, or where {folder / RUN_FILE} has its images: "
            "name with --data_dir where they are now"
        )


def _schedules(config: Config) -> bool:
    """Whether a longer training bends a schedule: Reptile's meta-step falls over the whole of it."""
    return config.uses("meta_step") and config.meta_step != config.meta_step_final


def _last_trained(folder: Path) -> str:
    return str(read_json(folder / RUN_FILE).get("trained", ""))
