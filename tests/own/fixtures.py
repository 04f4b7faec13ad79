"""Small models of Keras layers, and tasks for them."""

import keras
import numpy as np
import tensorflow as tf

L = keras.layers


def model(*layers, shape=(4,), dtype="float64", seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return keras.Sequential([keras.Input(shape), *(layer() for layer in layers)])
    finally:
        keras.config.set_dtype_policy(before)


IMAGE, SERIES = (6, 6, 2), (5, 3)

LAYERS = {
    "dense": ((4,), lambda: L.Dense(5, "tanh")),
    "conv": (IMAGE, lambda: L.Conv2D(3, 3, activation="softplus"), L.Flatten),
    "strided": (IMAGE, lambda: L.Conv2D(3, 3, strides=2, padding="same"), L.GlobalAveragePooling2D),
    "grouped": (IMAGE, lambda: L.Conv2D(4, 3, groups=2), L.Flatten),
    "dilated": (IMAGE, lambda: L.Conv2D(3, 2, dilation_rate=2), L.Flatten),
    "transposed": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2), L.Flatten),
    "depthwise": (IMAGE, lambda: L.DepthwiseConv2D(3), L.Flatten),
    "separable": (IMAGE, lambda: L.SeparableConv2D(3, 3), L.Flatten),
    "conv1d": (SERIES, lambda: L.Conv1D(3, 2), L.GlobalMaxPooling1D),
    "conv3d": ((3, 4, 4, 1), lambda: L.Conv3D(2, 2), L.Flatten),
    "max pooling": (IMAGE, lambda: L.Conv2D(3, 3, padding="same"), L.MaxPooling2D, L.Flatten),
    "average pooling": (IMAGE, lambda: L.Conv2D(3, 3, padding="same"), lambda: L.AveragePooling2D(2), L.Flatten),
    "batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), L.BatchNormalization, L.Flatten),
    "dense batch-norm": ((4,), lambda: L.Dense(5), L.BatchNormalization),
    "group-norm": (IMAGE, lambda: L.Conv2D(4, 3), lambda: L.GroupNormalization(2), L.Flatten),
    "layer-norm": ((4,), lambda: L.Dense(5), L.LayerNormalization),
    "rms-norm": ((4,), lambda: L.Dense(5), L.RMSNormalization),
    "unit-norm": ((4,), lambda: L.Dense(5), L.UnitNormalization),
    "upsampling": (IMAGE, lambda: L.Conv2D(2, 3), lambda: L.UpSampling2D(2), L.Flatten),
    "simple rnn": (SERIES, lambda: L.SimpleRNN(4)),
    "lstm": (SERIES, lambda: L.LSTM(3)),
    "gru": (SERIES, lambda: L.GRU(3)),
    "bidirectional": (SERIES, lambda: L.Bidirectional(L.LSTM(2))),
    "time-distributed": (SERIES, lambda: L.TimeDistributed(L.Dense(3)), L.Flatten),
    "masking": (SERIES, lambda: L.Masking(0.5), lambda: L.LSTM(3)),
    "convolutional lstm": ((3, 4, 4, 1), lambda: L.ConvLSTM2D(2, 2), L.Flatten),
    "instance-norm": (IMAGE, lambda: L.Conv2D(4, 3), lambda: L.GroupNormalization(-1), L.Flatten),
    "pooling 1d": (SERIES, lambda: L.Conv1D(3, 2), lambda: L.AveragePooling1D(2), L.GlobalAveragePooling1D),
    "strided transposed 1d": (SERIES, lambda: L.Conv1DTranspose(2, 3, strides=2), L.Flatten),
    "frozen batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), lambda: L.BatchNormalization(trainable=False), L.Flatten),
    "pooled batch-norm": (IMAGE, lambda: L.Conv2D(3, 3), L.BatchNormalization, L.ReLU, L.MaxPooling2D, L.Flatten),
    "einsum": (SERIES, lambda: L.EinsumDense("abc,cd->abd", (5, 4)), L.Flatten),
    "dropout": ((4,), lambda: L.Dense(8, "tanh"), lambda: L.Dropout(0.5)),
}


def parabola(rng):
    """Points of y = a x²."""
    slope, x = rng.normal(), rng.normal(size=(12, 1))
    return x[:5], slope * x[:5] ** 2, x[5:], slope * x[5:] ** 2


def line(rng):
    """Points of a straight line."""
    slope, x = rng.normal(), rng.normal(size=(12, 1))
    return x[:5], slope * x[:5], x[5:], slope * x[5:]


def blobs(rng):
    """Three clouds of points, with their numbers as labels."""
    centres = 3 * rng.normal(size=(3, 2))
    y = rng.permutation(np.repeat([0, 1, 2], 6))
    x = centres[y] + 0.3 * rng.normal(size=(18, 2))
    return x[:9], y[:9], x[9:], y[9:]


TINY = {"metatrain_iterations": 20, "update_lr": 0.1, "num_updates": 2, "meta_batch_size": 2}


def small(outputs=1, inputs=1) -> keras.Model:
    return model(lambda: L.Dense(8, "tanh"), lambda: L.Dense(outputs), shape=(inputs,), dtype="float32")


def nearest(values):
    """Values [n, 1] through an operation without a second derivative."""
    return tf.image.resize(values[:, None, None], [1, 1], "nearest")[:, 0, 0]
