"""A small transformer on sequences of tokens: whether a token that is the task's own occurs in them."""

import keras
import numpy as np

import maml

TOKENS, LENGTH = 8, 4


def task(rng):
    """Sequences, half of them with the task's token in one place."""
    own = rng.integers(TOKENS)
    others = [token for token in range(TOKENS) if token != own]
    x, y = rng.choice(others, (48, LENGTH)), rng.permutation(np.repeat([0, 1], 24))
    x[y == 1, rng.integers(0, LENGTH, 24)] = own
    return x[:24], y[:24], x[24:], y[24:]


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
        update_lr=0.5,
        num_updates=3,
        metatrain_iterations=1000,
        meta_lr=0.002,
        logdir="logs/transformer",
    )
    print(learner.test(task, 100))
