"""An LSTM on time series: what comes next in a wave whose period and shape it has seen eight pieces of."""

import keras
import numpy as np

import maml


def task(rng):
    """Pieces of 20 values of one wave, and the value after each."""
    period, power, phases = rng.uniform(6, 15), rng.uniform(0.5, 2), rng.uniform(0, 2 * np.pi, 16)
    waves = np.sin(phases[:, None] + 2 * np.pi * np.arange(21) / period)
    waves = np.sign(waves) * np.abs(waves) ** power
    x, y = waves[:, :20, None], waves[:, 20:]
    return x[:8], y[:8], x[8:], y[8:]


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20, 1)), keras.layers.LSTM(24, unroll=True), keras.layers.Dense(1)])
    learner = maml.train(
        model, task, update_lr=0.1, num_updates=3, metatrain_iterations=300, meta_lr=0.005, logdir="logs/lstm"
    )
    print(learner.test(task, 100))
