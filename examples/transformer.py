"""A small transformer on sequences of tokens: which of two tokens of a task's own stands in front of the other."""

import keras
import numpy as np

import maml

TOKENS, LENGTH = 12, 8


def task(rng):
    """Sequences with two tokens once each among others; the label is their order."""
    first, second = rng.choice(TOKENS, 2, replace=False)
    others = [token for token in range(TOKENS) if token not in (first, second)]
    x, y = rng.choice(others, (32, LENGTH)), rng.integers(0, 2, 32)
    for row, label in zip(x, y, strict=True):
        places = np.sort(rng.choice(LENGTH, 2, replace=False))
        row[places] = (first, second) if label else (second, first)
    return x[:16], y[:16], x[16:], y[16:]


def transformer() -> keras.Model:
    """One block of attention over tokens and their places, and a mean."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    places = keras.ops.arange(LENGTH)
    hidden = keras.layers.Embedding(TOKENS, 32)(tokens) + keras.layers.Embedding(LENGTH, 32)(places)
    hidden = hidden + keras.layers.MultiHeadAttention(2, 16)(hidden, hidden)
    hidden = keras.layers.LayerNormalization()(hidden)
    hidden = keras.layers.LayerNormalization()(hidden + keras.layers.Dense(32, "gelu")(hidden))
    return keras.Model(tokens, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(hidden)))


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    learner = maml.train(
        transformer(),
        task,
        loss="xent",
        update_lr=0.3,
        num_updates=3,
        metatrain_iterations=1000,
        meta_lr=0.002,
        logdir="logs/transformer",
    )
    print(learner.test(task, 100))
