"""A Keras model of your own on tabular regression: what a new machine does, from ten measurements of it."""

import keras
import numpy as np

import maml

rng = np.random.default_rng(0)
hidden = rng.normal(size=(60, 12))  # what makes the machines differ
x = rng.normal(size=(60, 200, 12)).astype("float32")
y = np.tanh((x * hidden[:, None]).sum(-1, keepdims=True) / 3).astype("float32")


def task(rng, first=0, last=50):
    """Ten measurements of a machine to learn from, twenty to be judged by."""
    m, p = rng.integers(first, last), rng.permutation(200)[:30]
    return x[m, p[:10]], y[m, p[:10]], x[m, p[10:]], y[m, p[10:]]


def unseen(rng):
    """The same of machines that are kept from training."""
    return task(rng, 50, 60)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(32, "tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(1),
        ]
    )
    learner = maml.train(
        model,
        task,
        val=unseen,
        loss="mse",
        update_lr=0.1,
        num_updates=3,
        metatrain_iterations=400,
        logdir="logs/machines",
    )
    print(learner.adapt(x[55, :10], y[55, :10]).predict(x[55, 10:])[:3].ravel(), y[55, 10:13].ravel())
    print(learner.test(unseen, 200))
