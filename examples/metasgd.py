"""A tiny function of (weights, x), with an inner rate learned for every weight (Meta-SGD), on sine waves."""

import numpy as np
import tensorflow as tf

import maml

rng = np.random.default_rng(0)
weights = {
    "w1": rng.normal(size=(1, 40)).astype("float32"),
    "b1": np.zeros(40, "float32"),
    "w2": (rng.normal(size=(40, 40)) / 40**0.5).astype("float32"),
    "b2": np.zeros(40, "float32"),
    "w3": (rng.normal(size=(40, 1)) / 40**0.5).astype("float32"),
    "b3": np.zeros(1, "float32"),
}


def forward(weights, x):
    """Two hidden layers."""
    hidden = tf.nn.relu(x @ weights["w1"] + weights["b1"])
    hidden = tf.nn.relu(hidden @ weights["w2"] + weights["b2"])
    return hidden @ weights["w3"] + weights["b3"]


def task(rng):
    """Ten points of a sine wave to learn from, ten to be judged by."""
    amplitude, phase = rng.uniform(0.1, 5), rng.uniform(0, np.pi)
    x = rng.uniform(-5, 5, (20, 1)).astype("float32")
    y = (amplitude * np.sin(x - phase)).astype("float32")
    return x[:10], y[:10], x[10:], y[10:]


if __name__ == "__main__":
    learner = maml.train(
        (weights, forward),
        task,
        loss="mse",
        learn_rates="weight",
        update_lr=0.01,
        metatrain_iterations=2000,
        logdir="logs/metasgd",
    )
    print(learner.test(task, 200))
