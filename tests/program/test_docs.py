"""What the README and the guides tell people to type: every command of main.py runs, smaller than it stands there."""

import argparse
import importlib
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from absl import flags

import proc_images
from maml import program
from maml.config import Config
from tests.command_line import ROOT, run_here
from tests.image_fixtures import write_class_folders, write_omniglot_archives

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")])
PAGES += sorted((ROOT / "pretrained").glob("*/README.md"))
SHOWN = {"demo", "help", "helpfull", "version"}  # by these, which are no setting


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind == language]


def commands(text: str, program: str = r"main\.py") -> list[list[str]]:
    """The words after every `python main.py` of a page, in a block of commands or inside a sentence."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    lines = "\n".join(fence.findall(text)).replace("\\\n", " ").splitlines()
    lines += [inline.replace("\n", " ") for inline in re.findall(r"`([^`]+)`", fence.sub("", text))]
    found = [words for line in lines for words in re.findall(rf"python {program}([^#|&']*)", line)]
    return [shlex.split(words) for words in found if "..." not in words and "…" not in words]


COMMANDS = [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page.read_text("utf-8"))]
DEVELOPERS = [ROOT / name for name in ("benchmarks/README.md", "tests/README.md", "CONTRIBUTING.md")]
PROGRAMS = r"-m (?=maml|benchmarks|tests\.(?!mutations))"  # that one takes no flags
OTHERS = {tuple(words) for page in PAGES + DEVELOPERS for words in commands(page.read_text("utf-8"), PROGRAMS)}


def test_commands_are_found():
    assert len(COMMANDS) > 30 and ("README.md", ["--train=False", "--test_set=True"]) in COMMANDS
    assert len(OTHERS) > 20 and ("maml.compare", "logs/A", "logs/B") in OTHERS


def names(command: Iterable[str]) -> set[str]:
    """The flags that a command gives, without their values."""
    return {argument.lstrip("-").split("=")[0] for argument in command}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(value)[:60])
def test_every_command_is_a_valid_one(page, command):
    if not SHOWN & names(command):
        Config.from_flags(parsed(command))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data that the guides suppose."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "omniglot").mkdir()
    write_omniglot_archives(folder / "omniglot")
    write_class_folders(folder / "miniImagenet", {"train": 5, "val": 5, "test": 5}, 30, size=24)
    for same in ("made_up", "photos"):
        (folder / same).symlink_to(folder / "miniImagenet")
    return folder


# With the images of its guide below; in test_main and tests/demo; in test_official_checkpoint.
ELSEWHERE = SHOWN | {"predict"}
DIFFERENT = {  # in more than the log folder, which is new for each
    tuple(word for word in command if not word.startswith("--logdir") or "pretrained" in word)
    for _, command in COMMANDS
    if not names(command) & ELSEWHERE and not {"num_updates", "test_set"} <= names(command)
}


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("command", sorted(DIFFERENT), ids=" ".join)
def test_every_command_runs(command, data, tmp_path, monkeypatch):
    """With two iterations of one task instead of thousands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data)
    (tmp_path / "DIR").symlink_to(data / "photos")
    given = names(command)
    smaller = {"metatrain_iterations": 2, "meta_batch_size": 1, "val_tasks": 2}
    if "pretrain_iterations" in given:
        smaller |= {"metatrain_iterations": 0, "pretrain_iterations": 2}
    if {"algorithm", "datasource"} & given and "sinusoid" not in " ".join(command):
        smaller["num_filters"] = 2
    if "maml++" in " ".join(command) or "num_updates" in given:
        smaller["num_updates"] = 1
    if "train" in given:
        fewer = {"protonet": {}, "reptile": {"eval_inner_iters": 1}}
        named = next((name for name in fewer if name in " ".join(command)), "")
        smaller = {"test_tasks": 4} | fewer.get(named, {"test_num_updates": 1})
        logdir = next((word.split("=")[1] for word in command if "--logdir" in word), "logs/run")
        shutil.copytree(ROOT / (logdir if "pretrained" in logdir else "pretrained/sinusoid_10shot"), tmp_path / logdir)
    assert run_here(*command, *(f"--{name}={value}" for name, value in smaller.items())) == 0


@pytest.mark.parametrize("command", sorted(OTHERS), ids=" ".join)
def test_every_other_program_understands_its_command(command, monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    class Understood(Exception):
        pass

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", only_parse)
    monkeypatch.setattr("sys.argv", list(command))
    module = {"maml.compare": "maml.comparison"}.get(command[0], command[0])
    with pytest.raises(Understood):
        importlib.import_module(module).main()


def parsed(command: list[str]) -> dict:
    """The flags that a command gives."""
    if "datasource" not in flags.FLAGS:
        program.define_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    rest = program.parse(["main.py", *command])
    assert rest == ["main.py"], f"not flags: {rest[1:]}"
    return program.given_flags()


SMALLER = {"--train=False": ("--test_tasks=4", "--test_num_updates=1"), "--predict": ("--test_num_updates=1",)}
TRAINED_SMALLER = ("--metatrain_iterations=2", "--meta_batch_size=1", "--val_tasks=0", "--num_filters=2")
PREPARED = {  # what a reader of the page has before the commands
    "README.md": lambda: None,
    "docs/own_images.md": lambda: own_images(),
    "docs/reproducing.md": lambda: None,
    "data/README.md": lambda: write_class_folders("photos", {"": 25}, 20, size=24),
}


def own_images() -> None:
    """A trained run, and images to adapt it to and to ask it about."""
    shutil.copytree(ROOT / "pretrained/omniglot_5way_1shot", "logs/omniglot5way/run")
    write_class_folders("images", {"train": 5}, 1, size=28)
    shutil.move("images/train", "support")
    Path("query").mkdir()
    for image in sorted(Path("support").glob("*/*")):
        shutil.copy(image, Path("query") / f"{image.parent.name}_{image.name}")


def run_line(line: str) -> bool:
    """Runs a command of a guide, if it is one of this project's; made smaller, so that it takes a second."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "main.py"]:
        smaller = next((more for flag, more in SMALLER.items() if flag in words), TRAINED_SMALLER)
        more = [] if "--norm=None" not in words else ["--num_filters=64"]  # a sinusoid has none
        assert run_here(*words[2:], *smaller, *more) == 0, line
    elif words[:2] == ["python", "proc_images.py"]:
        assert proc_images.main(words[2:]) == 0, line
    elif words[:2] == ["python", "-c"]:
        exec(words[2].replace("600", "20"), {})
    else:
        return False
    return True


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("page", PREPARED)
def test_the_commands_of_a_guide_run_one_after_another(page, tmp_path, monkeypatch):
    """Of the last block of commands, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    PREPARED[page]()
    [*_, block] = [text for text in blocks(page, "") if "python main.py" in text]
    ran = [run_line(line) for line in block.replace("\\\n", " ").splitlines()]
    assert any(ran)


def tasks(rng):
    x, slope = rng.normal(size=(20, 3)).astype(np.float32), rng.normal()
    y = slope * x[:, :1]
    return x[:10], y[:10], x[10:], y[10:]


def test_a_model_of_ones_own(tmp_path, monkeypatch, capsys):
    import keras

    monkeypatch.chdir(tmp_path)
    x, y, new_x, _ = tasks(np.random.default_rng(0))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    unseen = [tasks(np.random.default_rng(seed)) for seed in range(3)]
    given = {"model": model, "task": tasks, "unseen": unseen, "x": x, "y": y, "new_x": new_x}
    [first, *_], [second, *_] = blocks("README.md", "python"), blocks("docs/your_own_model.md", "python")
    assert "metatrain_iterations=400" in first
    exec(first.replace("metatrain_iterations=400", "metatrain_iterations=4"), given)
    assert "3 updates, query set" in capsys.readouterr().out
    shutil.rmtree("logs")
    exec(second.replace("num_updates=3", "num_updates=3, metatrain_iterations=4"), given)
    assert (tmp_path / "exported").is_dir()


@pytest.mark.parametrize(("page", "which"), [("README.md", 1), ("docs/own_images.md", 0)])
def test_images_of_ones_own(page, which, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_images()
    exec(blocks(page, "python")[which], {})
    assert capsys.readouterr().out.startswith("['train_00', 'train_01', 'train_02', 'train_03', 'train_04']\n")
    assert (tmp_path / "exported/saved_model.pb").is_file()
