"""Attention and full context embeddings of tiny cases, against numbers derived by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms.matching import (
    MatchingNetworks,
    class_attention,
    contextual_query,
    contextual_support,
    lstm_step,
)
from maml.config import Config


def tensor(values) -> tf.Tensor:
    return tf.constant(values, tf.float64)


def matching(**flags) -> MatchingNetworks:
    given = {"algorithm": "matching", "num_filters": 4, "update_batch_size": 1, "dtype": "float64"}
    return MatchingNetworks(Config.from_flags(given | flags))


def test_a_class_has_the_attention_of_its_examples():
    """Similarities 0, ln 2 and ln 3 become attention 1/6, 2/6 and 3/6; classes {1, 3}, {2} and {} have 4/6, 2/6, 0."""
    similarity = tensor([[0, math.log(2), math.log(3)]])
    labels = tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(np.exp(class_attention(similarity, labels)), [[4 / 6, 2 / 6, 0]], rtol=1e-12)


@pytest.mark.parametrize("scale", [1, 10, 0])
def test_the_scale_lifts_the_bound_of_plain_cosine_attention(scale):
    """The best case, cosines 1 and four times −1: the right class has e / (e + 4/e) = 0.65, times 10 nearly all.

    A scale of 0 is learned, and starts at 10.
    """
    model = matching(attention_scale=float(scale))
    query, support = tensor([[2, 0]]), tensor([[1, 0]] + [[-3, 0]] * 4)
    attention = np.exp(model.logits(model.construct_weights(0), support, tf.eye(5, dtype=tf.float64), query))
    factor = scale or 10
    expected = math.exp(factor) / (math.exp(factor) + 4 * math.exp(-factor))
    np.testing.assert_allclose(attention[0, 0], expected, rtol=1e-12)
    assert (expected < 0.65) == (scale == 1)


def test_a_step_of_an_lstm():
    """Gates from the bias alone: i = f = o = σ(0) but f = σ(0 + 1), and tanh(g) = 1/2.

    c = σ(1) · 2 + 1/2 · 1/2, h = 1/2 · tanh(c).
    """
    weights = {"x/kernel": tf.zeros([3, 4], tf.float64), "x/bias": tensor([0, 0, math.atanh(0.5), 0])}
    zeros = tf.zeros([1, 1], tf.float64)
    out, cell = lstm_step(tf.zeros([1, 2], tf.float64), zeros, tensor([[2]]), weights, "x")
    c = 2 / (1 + math.exp(-1)) + 0.25
    np.testing.assert_allclose([cell[0, 0], out[0, 0]], [c, 0.5 * math.tanh(c)], rtol=1e-12)


def only_g(row: int, rows: int) -> tf.Tensor:
    """A kernel by which the candidate g is the given input, and the three gates are open by half (f by σ(1))."""
    return tf.scatter_nd([[row, 2]], tensor([1]), [rows, 4])


def test_a_support_embedding_sees_its_neighbors_on_both_sides():
    """Of x = (1, 3): →c₁ = tanh(1)/2, →c₂ = σ(1) →c₁ + tanh(3)/2, and ←c in the other order; h = tanh(c)/2."""
    weights = {}
    for name in ("forward", "backward"):
        weights |= {f"{name}/kernel": only_g(0, 2), f"{name}/bias": tf.zeros([4], tf.float64)}
    found = contextual_support(tensor([[1], [3]]), weights)
    keep = 1 / (1 + math.exp(-1))
    one, three = math.tanh(1) / 2, math.tanh(3) / 2
    ahead = np.array([one, keep * one + three])
    back = np.array([keep * three + one, three])
    np.testing.assert_allclose(found[:, 0], np.tanh(ahead) / 2 + np.tanh(back) / 2 + [1, 3], rtol=1e-12)


def test_a_query_embedding_reads_the_support_set_with_attention():
    """Support 0 and 2, query 1; the candidate of the LSTM is what was read.

    Step 1 reads the mean, 1: c = tanh(1)/2, h = tanh(c)/2 + 1. Step 2 reads r = 2 e^(2h) / (1 + e^(2h)):
    c' = σ(1) c + tanh(r)/2, h' = tanh(c')/2 + 1.
    """
    weights = {"attention/kernel": only_g(2, 3), "attention/bias": tf.zeros([4], tf.float64)}
    support, query = tensor([[0], [2]]), tensor([[1]])
    c = math.tanh(1) / 2
    h = math.tanh(c) / 2 + 1
    np.testing.assert_allclose(contextual_query(query, support, weights, 1)[0, 0], h, rtol=1e-12)
    read = 2 / (1 + math.exp(-2 * h))
    c = c / (1 + math.exp(-1)) + math.tanh(read) / 2
    h = math.tanh(c) / 2 + 1
    np.testing.assert_allclose(contextual_query(query, support, weights, 2)[0, 0], h, rtol=1e-12)


def test_full_context_embeddings_have_weights_of_their_own():
    """Three LSTMs of 4 units: kernels of 4 + 4 rows, the attention's of 4 + 8, four gates of 4 columns."""
    plain, full = matching().construct_weights(0), matching(fce=True).construct_weights(0)
    shapes = {name: tuple(full[name].shape) for name in full if name not in plain}
    lstm = {"kernel": (8, 16), "bias": (16,)}
    expected = {f"{name}/{part}": shape for name in ("forward", "backward") for part, shape in lstm.items()}
    assert shapes == expected | {"attention/kernel": (12, 16), "attention/bias": (16,)}
