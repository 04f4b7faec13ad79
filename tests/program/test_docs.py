"""What the README and the guides tell people to type: the programs run, and every command of main.py is a valid one."""

import re
import shlex
import shutil

import numpy as np
import pytest
from absl import flags

from maml import program
from maml.config import Config
from tests.command_line import ROOT
from tests.image_fixtures import write_class_folders

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")])
PAGES += sorted((ROOT / "pretrained").glob("*/README.md"))
SHOWN = {"demo", "help", "helpfull", "version"}  # by these, which are no setting


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The flags of every `python main.py …` of a page, in a line or inside a sentence."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"python main\.py([^`\n#|&']*)", joined)
    return [shlex.split(line) for line in found if "..." not in line and "…" not in line]


COMMANDS = [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page.read_text("utf-8"))]


def test_commands_are_found():
    assert len(COMMANDS) > 30 and ("README.md", ["--train=False", "--test_set=True"]) in COMMANDS


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(value)[:60])
def test_every_command_is_a_valid_one(page, command):
    if not SHOWN & {argument.lstrip("-").split("=")[0] for argument in command}:
        Config.from_flags(parsed(command))


def parsed(command: list[str]) -> dict:
    """The flags that a command gives."""
    if "datasource" not in flags.FLAGS:
        program.define_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    rest = program.parse(["main.py", *command])
    assert rest == ["main.py"], f"not flags: {rest[1:]}"
    return program.given_flags()


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
    shutil.copytree(ROOT / "pretrained/omniglot_5way_1shot", "logs/omniglot5way/run")
    write_class_folders(tmp_path / "images", {"train": 5}, 1, size=28)
    shutil.move("images/train", "support")
    (tmp_path / "query").mkdir()
    for image in sorted((tmp_path / "support").glob("*/*")):
        shutil.copy(image, tmp_path / "query" / f"{image.parent.name}_{image.name}")
    exec(blocks(page, "python")[which], {})
    assert capsys.readouterr().out.startswith("['train_00', 'train_01', 'train_02', 'train_03', 'train_04']\n")
    assert (tmp_path / "exported/saved_model.pb").is_file()
