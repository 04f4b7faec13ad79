"""Every flag at and past its limits: one line that names the flag, exit code 1, nothing written."""

import dataclasses

import pytest
import tensorflow as tf

from maml.algorithms import users
from maml.config import Config
from maml.data_generator import DataGenerator
from maml.errors import UserError
from maml.training.memory import check_memory, least_memory
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

INTEGERS = [field.name for field in dataclasses.fields(Config) if field.type is int]
NUMBERS = [field.name for field in dataclasses.fields(Config) if field.type is float]
SINUSOID_HAS_NONE = ("num_filters", "image_size", "channels")
MOST = dict.fromkeys(("num_updates", "test_num_updates", "unrolling_steps"), 1000)
MOST["crop"] = 512
MOST |= dict.fromkeys(("inner_iters", "inner_batch", "eval_inner_iters", "eval_inner_batch"), 10_000)


def least(name: str) -> float:
    return next(field.metadata["least"] for field in dataclasses.fields(Config) if field.name == name)


PAST = [f"--{name}={value}" for name in INTEGERS for value in (2**31, 10**30, int(least(name)) - 1)]
PAST += [f"--{name}={value}" for name in INTEGERS for value in ("nan", "1e3", "1.5", "", "two", "0x", "--")]
PAST += [f"--{name}={value}" for name in NUMBERS for value in ("nan", "inf", "-inf", "1e39", "-1e39", "1e999", "", "x")]
PAST += ["--num_updates=1001", "--test_num_updates=1001", "--test_num_updates=0", "--query_size=0", "--val_interval=0"]
PAST += [f"--algorithm=reptile --{name}=1.01" for name in ("meta_step", "meta_step_final")]
PAST += ["--norm=batch", "--conv=maybe", "--datasource=cifar", "--dtype=bfloat16", "--on_nan=ignore", "--nosuch=1"]
PAST += [f"--datasource=folder --data_dir=photos --image_size={size}" for size in (0, 15, 1025)]
PAST += [f"--datasource=folder --data_dir=photos --channels={channels}" for channels in (0, 2, 4)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAML_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("flags", PAST)
def test_past_a_limit(here, capsys, flags):
    assert run_here(*flags.split(" "), "--max_pool" if "image_size" in flags else "--log") == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: ")
    assert error.count("\n") == 1
    assert flags.split("--")[-1].split("=")[0] in error
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in INTEGERS if name not in SINUSOID_HAS_NONE])
def test_at_a_limit(name):
    lowest, algorithm = max(int(least(name)), 1), users(name)[0]
    most = next(field.metadata["most"] for field in dataclasses.fields(Config) if field.name == name)
    assert most == MOST.get(name, 2**31 - 1)
    for value in (lowest, most):
        assert (
            getattr(
                Config.from_flags(
                    {"algorithm": algorithm, name: value}
                    | ({"datasource": "omniglot"} if name == "crop" else {})
                    | ({"meta_batch_size": value} if name == "accumulate" else {})
                ),
                name,
            )
            == value
        )


@pytest.mark.parametrize(
    "flags",
    [
        "--update_batch_size=10000000",
        "--meta_batch_size=2147483647",
        "--num_updates=1000 --meta_batch_size=100000",
        "--datasource=folder --data_dir=photos --num_filters=2147483647",
        "--datasource=folder --data_dir=photos --num_classes=1000000000",
        "--datasource=folder --data_dir=photos --update_batch_size=1000000 --image_size=1024",
        "--datasource=folder --data_dir=photos --query_size=2147483647",
        "--datasource=folder --data_dir=photos --conv=False --meta_batch_size=1000000",
    ],
)
def test_what_cannot_fit_into_memory_is_refused_before_anything_is_read_or_allocated(here, capsys, flags):
    assert run_here(*flags.split()) == 1
    error = capsys.readouterr().err
    assert "GiB of memory, and this machine has" in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [{}, {"update_batch_size": 10000}, {"update_batch_size": 1000, "num_updates": 10, "dtype": "float64"}]
    + [{"datasource": name, "update_batch_size": 5, "num_updates": 5} for name in ("omniglot", "miniimagenet")]
    + [{"datasource": "folder", "image_size": 1024, "meta_batch_size": 1, "update_batch_size": 1}],
)
def test_reasonable_settings_fit(flags):
    check_memory(Config.from_flags(flags))


def test_what_must_be_kept_grows_with_every_inner_step_unless_first_order():
    one, five = (least_memory(Config(update_batch_size=1000, num_updates=steps)) for steps in (1, 5))
    assert 2 < five / one < 5
    assert least_memory(Config(update_batch_size=1000, num_updates=5, stop_grad=True)) == one
    assert least_memory(Config(update_batch_size=1000, dtype="float64")) == 2 * one


def test_more_than_the_data_holds(here, capsys):
    """The numbers of both sides, and the way out."""
    write_class_folders(here / "photos", {"train": 4}, 6, size=20, channels=1)
    base = ("--datasource=folder", "--data_dir=photos", "--image_size=20", "--channels=1", "--val_tasks=0")
    for flags, line in (
        (("--num_classes=5",), "folder train has 4 classes, and --num_classes=5 needs 5: lower --num_classes"),
        (
            ("--num_classes=4", "--update_batch_size=4"),
            "the 8 images that 4-shot with 4 queries needs, and a task takes 4: --query_size=2",
        ),
        (("--num_classes=4", "--update_batch_size=1000"), "the 2000 images that 1000-shot with 1000 queries needs"),
    ):
        assert run_here(*base, *flags) == 1
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
        assert [path.name for path in here.iterdir()] == ["photos"]


def test_a_full_memory_is_one_line(here, capsys, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nand more")

    monkeypatch.setattr(DataGenerator, "__init__", full)
    assert run_here() == 1
    assert capsys.readouterr().err.startswith("main.py: the memory is full; lower --meta_batch_size")
    with pytest.raises(UserError):
        check_memory(Config(meta_batch_size=2**31 - 1))
