"""A run is the flags and the data that its weights depend on; a test inherits what is the run's."""

import json

import numpy as np
import pytest
from PIL import Image

from maml.config import Config
from maml.errors import UserError
from maml.training import runs
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

IMAGES = ("--datasource=folder", "--image_size=16", "--channels=1", "--num_classes=3", "--update_batch_size=1")
IMAGES += ("--num_filters=4", "--meta_batch_size=2", "--num_updates=1", "--test_num_updates=1", "--val_tasks=0")
IMAGES += ("--metatrain_iterations=2", "--log=False")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("A", "B")):
        write_class_folders(tmp_path / name, {"train": 4, "val": 3, "test": 3}, 4, size=16, channels=1, seed=seed)
    return tmp_path


@pytest.mark.parametrize("flag", ["seed=1", "meta_lr=0.01", "query_size=2", "dtype=float64", "train_shots"])
def test_another_setting_is_another_run(flag):
    """Sweeps get a folder for each value; what only watches a run stays in its folder."""
    if flag == "train_shots":
        names = {Config(algorithm="reptile", datasource="omniglot", train_shots=n).exp_string for n in (10, 11)}
    else:
        name, value = flag.split("=")
        changed = Config(**{name: type(getattr(Config, name))(value)})
        names = {Config().exp_string, changed.exp_string}
    assert len(names) == 2


@pytest.mark.parametrize("flags", [{"val_tasks": 3}, {"save_interval": 7}, {"data_dir": "x"}, {"log": False}])
def test_what_cannot_change_the_weights_makes_no_other_run(flags):
    assert Config(**flags).exp_string == Config().exp_string


def test_official_settings_have_official_names():
    flags = {"datasource": "miniimagenet", "update_batch_size": 1, "num_updates": 5}
    expected = "cls_5.mbs_4.ubs_1.numstep5.updatelr0.01hidden32maxpoolbatchnorm"
    assert Config.from_flags(flags).exp_string == expected
    assert Config.from_flags(flags | {"seed": 3}).exp_string == expected + ".seed3"


def test_a_sweep_over_seeds_trains_and_tests_three_runs(here, capsys, eagerly):
    flags = ("--norm=None", "--meta_batch_size=2", "--metatrain_iterations=2", "--val_tasks=0", "--test_num_updates=1")
    for seed in ("0", "1", "2"):
        assert run_here(*flags, f"--seed={seed}", "--logdir=logs") == 0
        assert "already finished" not in capsys.readouterr().out
    tested = set()
    for seed in ("0", "1", "2"):
        assert run_here("--train=False", "--test_tasks=2", f"--seed={seed}", "--logdir=logs") == 0
        tested |= {line for line in capsys.readouterr().out.splitlines() if line.startswith("Testing")}
    assert len(tested) == 3


def test_other_images_are_another_run_and_moved_ones_are_not(here, capsys, eagerly):
    assert run_here(*IMAGES, "--data_dir=A", "--logdir=logs") == 0
    assert run_here(*IMAGES, "--data_dir=B", "--logdir=logs") == 1
    error = capsys.readouterr().err
    assert "than those of B" in error and "--resume=False" in error
    (here / "A").rename(here / "moved")
    assert run_here(*IMAGES, "--data_dir=moved", "--logdir=logs", "--metatrain_iterations=3") == 0
    assert "Resuming from iteration 2" in capsys.readouterr().out


def test_a_run_under_an_older_name_with_another_seed_is_refused(here):
    config = Config(logdir="logs")
    folder, _ = runs.open_run(config)
    runs.record_run(folder, config)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["seed"] = 5
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"holds a run with --seed=5, and this one has --seed=0: choose another"):
        runs.open_run(config)


def test_any_flag_of_the_run_may_be_given_beside_a_test_and_threads_are_the_runs(here, capsys, monkeypatch, eagerly):
    """Threads are not set from the flags that happen to be given with a test."""
    from maml import parallel

    assert run_here(*IMAGES, "--data_dir=A", "--logdir=logs") == 0
    seen = []
    monkeypatch.setattr(parallel, "set_up_threads", seen.append)
    for extra in ((), ("--num_filters=4",), ("--datasource=folder", "--num_filters=4"), ("--meta_lr=0.001",)):
        test = ("--train=False", "--test_set=True", "--test_tasks=2", "--logdir=logs", "--test_num_updates=1", *extra)
        assert run_here(*test) == 0, capsys.readouterr()
    assert {config.datasource for config in seen} == {"folder"}


def test_a_test_that_fits_no_run_names_what_differs(here, capsys, eagerly):
    """Also if its flags would make no sense without the run's others, as --max_pool with a sinusoid."""
    assert run_here(*IMAGES, "--data_dir=A", "--logdir=logs") == 0
    [folder] = [path.parent for path in here.glob("logs/*/run.json")]
    where = folder.relative_to(here)
    capsys.readouterr()
    for flags, other in ((("--num_filters=8",), "--num_filters=4"), (("--dtype=float64",), "--dtype=float32")):
        assert run_here("--train=False", "--test_set=True", "--logdir=logs", *flags) == 1
        error = capsys.readouterr().err
        assert error == f"main.py: no run under logs agrees with the flags given; there are {where} with {other}\n"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_are_seen_on_white(tmp_path, mode):
    """Two different black shapes on nothing stay different; all of it black before."""
    from maml.tasks.images import read_images

    names = []
    for number in range(2):
        picture = np.zeros([16, 16, 4], np.uint8)
        picture[4 * number : 4 * number + 6, 4:12, 3] = 255
        image = Image.fromarray(picture)
        if mode == "P":
            image = image.quantize(4)
        elif mode == "LA":
            image = image.convert("LA")
        names.append(str(tmp_path / f"{number}.png"))
        image.save(names[-1])
    one, other = read_images(names, "folder", image_size=16, channels=1)[..., 0]
    assert one[2, 8] == 0 and one[12, 2] == 255
    assert other[6, 8] == 0 and other[0, 8] == 255


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_are_turned_as_the_camera_says(tmp_path, orientation):
    from maml.tasks.images import read_images

    upright = np.zeros([16, 16, 3], np.uint8)
    upright[:8] = 255
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # quarter turns that undo what the orientation asks for
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(upright, turns)).save(tmp_path / "photo.png", exif=exif)
    [image] = read_images([str(tmp_path / "photo.png")], "folder", image_size=16, channels=3)
    np.testing.assert_array_equal(image, upright)
