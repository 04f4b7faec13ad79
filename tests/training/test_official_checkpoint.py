"""Checkpoints of the official code evaluate and go on training here, and ours load there."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.maml import MAML
from maml.models.official import Network
from maml.training import checkpoints
from maml.training.checkpoints import Progress
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders

EXP_STRING = "cls_5.mbs_4.ubs_1.numstep5.updatelr0.01hidden32maxpoolbatchnorm"
OFFICIAL_COMMAND = (
    *("--datasource=miniimagenet", "--metatrain_iterations=60000", "--meta_batch_size=4", "--update_batch_size=1"),
    *("--update_lr=0.01", "--num_updates=5", "--num_classes=5", "--num_filters=32", "--max_pool=True"),
)


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A log folder with the checkpoint that the authors of MAML released, and a few made-up images."""
    source = Path(os.environ.get("MAML_DATA", "")) / "official_maml/logs/miniimagenet1shot"
    if "MAML_DATA" not in os.environ or not source.is_dir():
        pytest.skip("needs the released checkpoint: MAML_DATA names no folder with official_maml in it")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, tmp_path / "released")
    for path in (tmp_path / "released").rglob("*"):
        path.chmod(0o755)
    write_class_folders(tmp_path / "data/miniImagenet", {"train": 5, "val": 5, "test": 5}, 16)
    return tmp_path / "released" / EXP_STRING


def test_the_official_command_tests_it(released, eagerly):
    """With as many steps and tasks as one likes; the next test leaves both out."""
    flags = ("--train=False", "--test_set=True", "--logdir=released", "--test_tasks=4", "--test_num_updates=1")
    assert run_here(*OFFICIAL_COMMAND, *flags, "--test_iter=59000") == 0
    record = json.loads((released / "test_ubs1_stepsize0.01_numupdates1_tasks4.json").read_text())
    assert record["checkpoint"] == "model59000"
    assert len(record["mean"]) == 2


def test_it_is_as_accurate_on_the_real_images_as_the_paper_says(released):
    """The paper: 48.70 ± 1.84 % after 10 steps; here 60 tasks of a sixth of the images, whose mean may be 5.7 % off."""
    archive = Path(os.environ["MAML_DATA"]) / "miniimagenet/test.zip"
    if not archive.is_file():
        pytest.skip("needs miniImageNet: MAML_DATA has no miniimagenet/test.zip")
    shutil.rmtree("data/miniImagenet/test")
    with zipfile.ZipFile(archive) as images:
        by_class: dict[str, list[str]] = {}
        for name in sorted(images.namelist()):
            if name.endswith(".jpg"):
                by_class.setdefault(Path(name).parent.name, []).append(name)
        for kind, names in by_class.items():
            folder = Path("data/miniImagenet/test", kind)
            folder.mkdir(parents=True)
            for name in names[:100]:
                (folder / Path(name).name).write_bytes(images.read(name))
    assert len(by_class) == 20
    flags = ("--train=False", "--test_set=True", "--logdir=released", "--test_tasks=60")
    assert run_here(*OFFICIAL_COMMAND, *flags) == 0
    record = json.loads((released / "test_ubs1_stepsize0.01_tasks60.json").read_text())
    mean = record["mean"]
    assert record["checkpoint"] == "model59000" and len(mean) == 11
    assert abs(mean[0] - 0.20) < 0.03
    assert abs(mean[5] - 0.487) < 0.057 and abs(mean[10] - 0.487) < 0.057


def test_a_missing_iteration_is_one_line(released, capsys):
    flags = ("--train=False", "--test_set=True", "--logdir=released", "--test_iter=10")
    assert run_here(*OFFICIAL_COMMAND, *flags) == 1
    assert "there are: 59000" in capsys.readouterr().err


def test_training_goes_on_from_it(released, capsys):
    flags = ("--logdir=released", "--metatrain_iterations=59002", "--val_tasks=0", "--log=False")
    flags += ("--test_num_updates=5",)  # starts faster than with ten
    assert run_here(*OFFICIAL_COMMAND, *flags) == 0
    assert "Resuming from iteration 59000" in capsys.readouterr().out
    newest = checkpoints.list_checkpoints(released)[-1]
    assert newest.iteration == 59002
    model = MAML(Config.from_flags({"datasource": "miniimagenet"}))
    before, _ = checkpoints.restore(checkpoints.list_checkpoints(released)[0], model)
    after, _ = checkpoints.restore(newest, model)
    moved = np.abs(after.weights["conv2"] - before.weights["conv2"]).max()
    assert 0 < moved < 0.01  # two Adam steps of 0.001 from the released weights


def test_another_network_is_refused_with_a_list(released, capsys):
    command = [flag for flag in OFFICIAL_COMMAND if "num_classes" not in flag]
    (released.parent / EXP_STRING.replace("cls_5", "cls_3")).symlink_to(released)
    flags = ("--num_classes=3", "--train=False", "--test_set=True", "--logdir=released")
    assert run_here(*command, *flags) == 1
    error = capsys.readouterr().err
    assert "model/w5 is [800, 5], expected [800, 3]" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flags", [{"datasource": "omniglot", "num_filters": 4}, {"norm": "None"}])
def test_tensorflow_1_restores_our_checkpoints(tmp_path, flags):
    """A TensorFlow 1 Saver of the official variables reads what training wrote, through the `checkpoint` file."""
    model = MAML(Config.from_flags(flags))
    state = model.init_state()
    checkpoints.save(tmp_path, model, state, Progress(1000, np.zeros([0, 2]), 0.0))
    names = model.checkpoint_names(state.weights)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("model"):
            variables = {
                name: v1.get_variable(names[name].removeprefix("model/"), weight.shape, use_resource=False)
                for name, weight in state.weights.items()
            }
        newest = v1.train.latest_checkpoint(str(tmp_path))
        v1.train.Saver(v1.trainable_variables()).restore(session, newest)
        for name, variable in variables.items():
            np.testing.assert_array_equal(session.run(variable), state.weights[name])


def test_the_flat_head_reads_the_map_as_the_official_reshape_did():
    """Rows of w5 are the last map in (row, column, filter) order, so official heads mean the same here."""
    network = Network.from_config(Config.from_flags({"datasource": "miniimagenet", "norm": "None", "num_filters": 2}))
    weights = network.init(0)
    weights["w5"] = tf.reshape(tf.one_hot([7], 50), [50, 1]) * tf.ones([1, 5])
    image = np.random.default_rng(0).random([1, 84 * 84 * 3]).astype(np.float32)
    hidden = image.reshape(1, 84, 84, 3)
    for i in range(1, 5):
        hidden = tf.nn.relu(tf.nn.conv2d(hidden, weights[f"conv{i}"], 1, "SAME") + weights[f"b{i}"])
        hidden = tf.nn.max_pool2d(hidden, 2, 2, "VALID")
    np.testing.assert_allclose(network.apply(weights, tf.constant(image))[0, 0], hidden[0, 0, 3, 1], rtol=1e-5)
