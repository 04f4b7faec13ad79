"""Prototypes, distances and losses of tiny cases, against numbers derived by hand."""

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms.adam import adam_init
from maml.algorithms.metric import cosine, minus_squared_distance
from maml.algorithms.protonet import PrototypicalNetworks, prototypes
from maml.config import Config
from maml.data_generator import Episodes
from maml.models.official import Network
from maml.training.updates import update


class Identity(Network):
    """An embedding f(x) = x·w of numbers, with w = 1 at the start."""

    def init(self, seed):
        return {"w": tf.ones([], tf.float64)}

    def embed(self, weights, inputs, reference=None):
        return inputs * weights["w"]


def protonet(**flags) -> PrototypicalNetworks:
    """The learner on the identity."""
    given = {"algorithm": "protonet", "num_classes": 2, "update_batch_size": 1, "dtype": "float64"}
    return PrototypicalNetworks(
        Config.from_flags(given | flags), Identity("identity", 2, 2, (), "None", dtype="float64")
    )


def tensor(values) -> tf.Tensor:
    return tf.constant(values, tf.float64)


# Two classes: prototypes (2, 1), of two examples, and (0, 4), of one.
SUPPORT = tensor([[[1, 0], [0, 4], [3, 2]]])
LABELS = tensor([[[1, 0], [0, 1], [1, 0]]])


def test_a_prototype_is_the_mean_of_its_class_however_many_examples_it_has():
    """((1, 0) + (3, 2)) / 2 = (2, 1), and (0, 4) alone."""
    np.testing.assert_array_equal(prototypes(SUPPORT[0], LABELS[0]), [[2, 1], [0, 4]])


def test_squared_distances():
    """(2, 2) is 0² + 1² = 1 from (2, 1) and 2² + 2² = 8 from (0, 4); (0, 4) is 4 + 9 = 13 and 0 from them."""
    found = minus_squared_distance(tensor([[2, 2], [0, 4]]), tensor([[2, 1], [0, 4]]))
    np.testing.assert_array_equal(found, [[-1, -8], [-13, 0]])


def test_cosines():
    """(3, 4)·(4, 3) = 24, over 5 · 5; a right angle is 0, the opposite −1; of a zero vector it is 0."""
    found = cosine(tensor([[3, 4], [0, 0]]), tensor([[4, 3], [-4, 3], [-6, -8], [0, 0]]))
    np.testing.assert_allclose(found, [[0.96, 0, -1, 0], [0, 0, 0, 0]], atol=1e-15)


def test_the_loss_of_a_task_and_its_gradient():
    """One query (2, 2) of the first class: logits −1 and −8, and so the loss is log(1 + e⁻⁷).

    With the embedding x·w all distances are multiplied by w². The loss is log(1 + e^(−7w²)), its
    derivative at w = 1 is −14 e⁻⁷ / (1 + e⁻⁷).
    """
    model = protonet()
    episodes = Episodes(SUPPORT, LABELS, tensor([[[2, 2]]]), tensor([[[1, 0]]]))
    loss, gradient = model.gradient(model.construct_weights(0), episodes, 0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-7)), rtol=1e-12)
    np.testing.assert_allclose(gradient["w"], -14 * np.exp(-7) / (1 + np.exp(-7)), rtol=1e-12)


def test_the_loss_is_the_mean_over_queries_and_over_tasks():
    """Queries (2, 2) and (2, 2) of classes 1 and 2: log(1 + e⁻⁷) and 7 more. A second task of the first query alone."""
    model = protonet()
    query = tensor([[[2, 2], [2, 2]]] * 2)
    labels = tensor([[[1, 0], [0, 1]], [[1, 0], [1, 0]]])
    episodes = Episodes(tf.repeat(SUPPORT, 2, 0), tf.repeat(LABELS, 2, 0), query, labels)
    base = np.log1p(np.exp(-7))
    loss, _ = model.gradient(model.construct_weights(0), episodes, 0)
    np.testing.assert_allclose(loss, base + 7 / 4, rtol=1e-12)
    measures = model.evaluate(model.construct_weights(0), episodes, 1)
    np.testing.assert_allclose(measures["loss"], [[base + 7 / 2], [base]], rtol=1e-12)
    np.testing.assert_array_equal(measures["accuracy"], [[0.5], [1.0]])


def test_the_learning_rate_is_halved_at_every_interval():
    """Adam's first step is as long as its rate: 0.4 for iterations 0 to 9, then 0.2, then 0.1."""
    model = protonet(meta_lr=0.4, halving_interval=10)
    episodes = Episodes(SUPPORT, LABELS, tensor([[[2, 2]]]), tensor([[[1, 0]]]))
    state = model.init_state()
    state = state._replace(metatrain=adam_init(state.weights))
    for iteration, rate in ((0, 0.4), (9, 0.4), (10, 0.2), (29, 0.1)):
        after, _ = update(model, state, episodes, tf.constant(iteration))
        np.testing.assert_allclose(after.weights["w"], 1 + rate, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "train", "test"),
    [
        ({}, (60, 1, 5), (5, 1, 1)),
        ({"train_num_classes": 20, "query_size": 3}, (20, 1, 3), (5, 1, 3)),
        ({"datasource": "miniimagenet"}, (30, 1, 15), (5, 1, 15)),
        ({"datasource": "miniimagenet", "update_batch_size": 5}, (20, 5, 15), (5, 5, 15)),
        ({"algorithm": "matching"}, (5, 1, 5), (5, 1, 1)),
        ({"algorithm": "maml"}, (5, 1, 1), (5, 1, 1)),
    ],
)
def test_training_tasks_have_sizes_of_their_own(flags, train, test):
    """As in the paper: 60-way on Omniglot; 30-way in 1-shot and 20-way in 5-shot on miniImageNet."""
    config = Config.from_flags({"algorithm": "protonet", "datasource": "omniglot", "update_batch_size": 1} | flags)
    assert (config.task_size("train"), config.task_size("val")) == (train, test)
