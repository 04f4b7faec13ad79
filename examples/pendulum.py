"""A loss of your own: the motion of a damped pendulum, with its equation as a second term of the loss."""

import numpy as np
import tensorflow as tf

import maml

rng = np.random.default_rng(0)
sizes = [(3, 32), (32, 32), (32, 1)]
weights = {f"layer{i}": {"w": rng.normal(size=s) / s[0] ** 0.5, "b": np.zeros(s[1])} for i, s in enumerate(sizes)}
STEP = 0.05


def forward(weights, x):
    """The angle, its speed and the time → the angle then; also a step before and after that time."""
    times = tf.constant([-STEP, 0.0, STEP], x.dtype)
    hidden = tf.stack([tf.concat([x[:, :2], x[:, 2:] + t], 1) for t in tf.unstack(times)], 1)
    for name in ("layer0", "layer1"):
        hidden = tf.nn.tanh(hidden @ weights[name]["w"] + weights[name]["b"])
    return (hidden @ weights["layer2"]["w"] + weights["layer2"]["b"])[..., 0]


def loss(outputs, y):
    """Squared error of the angle, and a little of how far the motion is from θ″ = −θ for small angles."""
    before, now, after = tf.unstack(outputs, axis=1)
    acceleration = (after - 2 * now + before) / STEP**2
    return tf.reduce_mean(tf.square(now - y[:, 0])) + 0.01 * tf.reduce_mean(tf.square(acceleration + now))


def task(rng):
    """Positions of one pendulum with a frequency of its own."""
    frequency, start, speed = rng.uniform(0.8, 1.2), rng.uniform(-1, 1, 20), rng.uniform(-1, 1, 20)
    time = rng.uniform(0, 3, 20)
    x = np.stack([start, speed, time], 1)
    y = (start * np.cos(frequency * time) + speed / frequency * np.sin(frequency * time))[:, None]
    return x[:10], y[:10], x[10:], y[10:]


if __name__ == "__main__":
    learner = maml.train(
        (weights, forward),
        task,
        loss=loss,
        update_lr=0.05,
        num_updates=2,
        metatrain_iterations=2000,
        logdir="logs/pendulum",
    )
    print(learner.test(task, 200))
