"""--deterministic: two runs agree to the bit. Of the sinusoid, in processes of their own, test_kill.py shows it."""

import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from maml import program
from maml.config import Config
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders
from tests.kill import tensors

IMAGES = ("--datasource=folder", "--data_dir=data", "--image_size=20", "--channels=1", "--num_classes=3")
IMAGES += ("--update_batch_size=1", "--num_filters=2", "--meta_batch_size=2", "--metatrain_iterations=3")
IMAGES += ("--num_updates=1", "--test_num_updates=1", "--val_tasks=0")


def test_two_runs_agree_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "data", {"train": 4}, 3, size=20, channels=1)
    found = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        assert run_here(*IMAGES, "--deterministic", f"--logdir={folder}/runs") == 0
        assert tf_config.is_op_determinism_enabled()
        found.append(tensors(tmp_path / folder, "model"))
    first, second = found
    assert first.keys() == second.keys()
    assert all(value.tobytes() == second[name].tobytes() for name, value in first.items())


def test_an_operation_without_a_deterministic_form_would_be_an_error():
    """What the flag asks of TensorFlow: no silent exception."""
    tf.config.experimental.enable_op_determinism()
    with pytest.raises((tf.errors.UnimplementedError, RuntimeError)):
        tf.random.uniform([])  # a generator without a seed


def test_without_the_flag_tensorflow_stays_as_it_is():
    """And is again what it was, behind the tests before."""
    program.set_up_tensorflow(Config(), None)
    assert not tf_config.is_op_determinism_enabled()
