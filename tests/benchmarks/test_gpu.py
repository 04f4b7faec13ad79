"""Trainings that leave TensorFlow as XLA modules, and what comes back."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.gpu import export
from benchmarks.settings import TOY, random_data
from maml import machine
from maml.maml import MAML
from maml.training.checkpoints import choose, list_checkpoints, restore
from maml.training.updates import make_update
from tests.tiny import relative_error


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    # First order and a fully connected network, which compile sooner.
    config = TOY["toy"].config.replace(logdir=str(tmp_path), stop_grad=True, conv=False)
    return config, random_data(config)


def state_after(iterations, config, data):
    model = MAML(config)
    return make_update(model, data)(model.init_state(), tf.constant(0), tf.constant(iterations)).state


def test_the_loop_is_that_of_a_training(toy, monkeypatch, eagerly):
    config, data = toy
    model = MAML(config)
    inputs = [data.tables["train"].images, tf.constant(0), tf.constant(2), *tf.nest.flatten(model.init_state())]
    *state, loss, finite = export.loop(model, data)(*inputs)
    monkeypatch.setattr(machine, "on_gpu", lambda: False)
    expected = state_after(2, config, data)
    assert finite and np.isfinite(loss)
    assert relative_error(tf.nest.pack_sequence_as(expected, state).weights, expected.weights) < 1e-4


def test_a_module_has_what_a_training_needs_and_what_comes_back_is_a_run(toy, tmp_path):
    config, data = toy
    written = export.training(config, data, with_images=True)
    assert written["hlo"].nbytes > 10_000 and written["first"] == 0
    np.testing.assert_array_equal(written["images"], data.tables["train"].images)

    state = state_after(1, config, data)
    flat = [tensor.numpy() for tensor in tf.nest.flatten(state)]
    back = {f"state/{i}": array for i, array in enumerate(flat)}
    back |= {f"{n}/{i}": array for n in (1, 2) for i, array in enumerate(flat[: int(written["weights"])])}
    np.savez(tmp_path / "trained.npz", iteration=2, **back)
    folder = export.fetch(config, data, tmp_path / "trained.npz")
    assert [checkpoint.iteration for checkpoint in list_checkpoints(folder)] == [1, 2]
    for which in (1, 2):
        restored, progress = restore(choose(folder, "latest", which), MAML(config))
        assert progress.iteration == which and relative_error(restored.weights, state.weights) == 0
    assert relative_error(restored.metatrain.v, state.metatrain.v) == 0  # the last one can go on
    assert export.training(config, data, with_images=False)["first"] == 2


def test_jax_computes_what_tensorflow_does(toy, tmp_path, monkeypatch):
    pytest.importorskip("jax", reason="JAX, which runs the modules, is not installed")
    from benchmarks.gpu import run

    config, data = toy
    np.savez(tmp_path / "module.npz", **export.training(config, data, with_images=True))
    arguments = ["train", str(tmp_path / "module.npz"), str(tmp_path / "trained.npz"), "--count=2", "--every=1"]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    run.main()
    folder = export.fetch(config, data, tmp_path / "trained.npz")
    restored, _ = restore(choose(folder, "latest", 2), MAML(config))
    assert relative_error(restored.weights, state_after(2, config, data).weights) < 1e-4
