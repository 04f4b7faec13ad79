"""The first quantity that is not finite is found and named."""

import pytest
import tensorflow as tf

from maml.algorithms.adapting import clipped
from maml.config import Config
from maml.maml import MAML
from maml.models.protocol import Model
from maml.training.diagnosis import all_finite, first_non_finite
from tests.tiny import tiny_episodes


class Root(Model):
    """f(x) = x·w + √β: at β = 0 its value is finite and its gradient is not."""

    adapted = frozenset(["w"])
    input_shape = (1,)
    dtype = "float64"

    def init(self, seed):
        return {"w": tf.ones([1, 1], tf.float64), "model/0/beta": tf.zeros([1], tf.float64)}

    def apply(self, weights, inputs, reference=None):
        return inputs @ weights["w"] + tf.sqrt(weights["model/0/beta"])


def culprit(beta: float = 1.0, spoil: str = "", pretraining: bool = False, scale: float = 1.0, **settings) -> str:
    config = Config(dtype="float64", norm="None", num_updates=3, pretrain_iterations=int(pretraining), **settings)
    model = MAML(config, Root())
    state, episodes = model.init_state(), tiny_episodes(model, 0)
    state.weights["model/0/beta"] = tf.constant([beta], tf.float64)
    if spoil:
        episodes = episodes._replace(**{spoil: getattr(episodes, spoil) * scale})
    return first_non_finite(model, state, episodes, iteration=0)


NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        ("update", {}),
        ("weight model/0/beta before the update", {"beta": NAN}),
        ("support loss before adaptation", {"spoil": "labela", "scale": NAN}),
        ("support loss before adaptation", {"spoil": "labela", "scale": NAN, "pretraining": True}),
        # A step multiplies the weight by about α: its square is the loss, and the largest float64 is 2e308.
        ("support loss after inner step 2", {"update_lr": 1e100}),
        ("support loss after inner step 1", {"update_lr": 1e200}),
        ("query loss after inner step 3", {"spoil": "labelb", "scale": NAN}),
        ("gradient of model/0/beta", {"beta": 0.0}),
        ("gradient of model/0/beta", {"beta": 0.0, "pretraining": True}),
        # The loss is of the order 1e306, its gradient 1e153 times the input, and the square of that too large.
        ("squared gradient of w", {"spoil": "inputb", "scale": 1e100}),
    ],
)
def test_culprits(expected, settings):
    assert culprit(**settings) == expected


def test_a_weight_that_an_inner_step_makes_infinite():
    assert culprit(update_lr=1e305, spoil="inputa", scale=1e10) == "weight w after inner step 1"


def test_a_weight_that_the_update_makes_infinite():
    assert culprit(meta_lr=1e308, beta=0.5) == "update", "Adam's steps are about as long as its rate"
    assert "after the update" in culprit(meta_lr=1.79e308 * 3)


def test_clipping_does_not_hide_what_is_not_finite():
    gradients = {"w": tf.constant([float("inf"), -float("inf"), 20.0, -20.0, 3.0]), "b": tf.constant([NAN])}
    limited = clipped(gradients)
    assert limited["w"].numpy().tolist() == [float("inf"), -float("inf"), 10.0, -10.0, 3.0]
    assert tf.math.is_nan(limited["b"])[0]


def test_all_finite_looks_at_every_tensor():
    good = {"a": tf.ones([2]), "b": (tf.ones([], tf.float64), tf.constant(1))}
    assert all_finite(good)
    assert not all_finite(good | {"c": tf.constant([1.0, float("inf")])})
