"""The gradient check says "exact" of exact models only."""

import numpy as np
import pytest
import tensorflow as tf

from maml.models import official
from maml.training import gradient_check
from maml.training.gradient_check import central_difference, check_gradients
from tests.command_line import run_here
from tests.tiny import tiny_episodes, tiny_model, tiny_weights

CASES = [("sinusoid", "None"), ("fc", "batch_norm"), ("strided, mean head", "batch_norm")]
CASES += [("pooled, flat head", "batch_norm"), ("strided, flat head", "layer_norm")]


def report(network, norm, **settings):
    model = tiny_model(network, norm, **settings)
    return check_gradients(model, tiny_weights(model, 1), tiny_episodes(model, 2))


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(("network", "norm"), CASES)
def test_exact_models(network, norm):
    found = report(network, norm, num_updates=2)
    assert found.exact
    assert max(found.errors) < 1e-6
    assert found.first_order_error > 1e-3
    assert found.second_order_share > 0
    assert "is exact" in found.lines()[-1]


@pytest.mark.usefixtures("eagerly")
def test_first_order_is_not_exact_and_says_that_it_was_asked_for():
    found = report("fc", "batch_norm", stop_grad=True)
    assert not found.exact
    assert "NOT exact (--stop_grad" in found.lines()[-1]
    assert max(found.errors) == found.first_order_error


@pytest.mark.usefixtures("eagerly")
def test_moments_that_stop_a_gradient_are_found(monkeypatch):
    """tf.nn.moments: right first derivatives, wrong second ones."""

    def batch_norm(inp, epsilon, reference=None):
        mean, variance = tf.nn.moments(inp, list(range(len(inp.shape) - 1)), keepdims=True)
        return (inp - mean) * tf.math.rsqrt(variance + epsilon)

    monkeypatch.setattr(official, "batch_norm", batch_norm)
    found = report("fc", "batch_norm")
    assert not found.exact
    assert found.errors[0] > 1e-4


def line_with_jump(place: float):
    """L(x) = 3·x, and 1 more from `place` on."""
    return lambda point: float(3 * point["x"] + (point["x"] > place))


def test_a_jump_within_the_longer_steps_is_stepped_around():
    """A jump at 3e-9 spoils the differences with h = 1e-7 and 1e-8; that with 1e-9 is right, but alone."""
    at_zero, right = {"x": np.float64(0)}, {"x": np.float64(1)}
    assert central_difference(line_with_jump(1.0), at_zero, right) == pytest.approx(3, rel=1e-12)
    assert central_difference(line_with_jump(3e-8), at_zero, right) == pytest.approx(3, rel=1e-12)
    assert central_difference(line_with_jump(3e-9), at_zero, right) is None


def test_a_model_that_jumps_everywhere_is_not_called_exact(monkeypatch):
    monkeypatch.setattr(gradient_check, "central_difference", lambda *_: None)
    found = report("sinusoid", "None")
    assert not found.exact
    assert found.at_jumps == gradient_check.DIRECTIONS
    assert "left out: 4 directions" in "\n".join(found.lines())


def test_float32_is_refused():
    with pytest.raises(ValueError, match="float64"):
        report("sinusoid", "None", dtype="float32")


def test_the_command(capsys, eagerly):
    flags = ("--norm=None", "--update_batch_size=10", "--update_lr=0.01", "--num_updates=3")
    assert run_here("--check_gradients", *flags) == 0
    assert "The meta-gradient is exact" in capsys.readouterr().out
    assert run_here("--check_gradients", "--stop_grad", *flags) == 1
