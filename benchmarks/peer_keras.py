"""The official networks as anyone would write them in Keras, for `maml.own`: what your own model costs beside ours."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from maml.algorithms import losses
from maml.config import Config
from maml.models.keras_model import KerasModel
from maml.models.official import BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, Network
from maml.own.algorithm import OwnMAML


def keras_network(network: Network) -> keras.Model:
    """An official network, [examples, dim_input] → [examples, dim_output]; a convolutional one without layer-norm.

    Keras' layer-norm of a whole image has a scale for every pixel, the official one for every channel.
    """
    model = keras.Sequential([keras.Input((network.dim_input,), dtype=network.dtype)])
    if network.kind == "conv":
        model.add(layers.Reshape((network.image_size,) * 2 + (network.channels,), dtype=network.dtype))
    for block in range(network.layers - 1):
        for layer in _block(network, block):
            model.add(layer)
    if network.kind == "conv":
        model.add((layers.Flatten if network.flat_head else layers.GlobalAveragePooling2D)(dtype=network.dtype))
    model.add(layers.Dense(network.dim_output, dtype=network.dtype))
    return model


def _block(network: Network, block: int) -> list[Any]:
    if network.kind == "conv":
        stride = 1 if network.max_pool else 2
        found = [layers.Conv2D(network.dim_hidden[0], 3, stride, "same", dtype=network.dtype)]
    else:
        found = [layers.Dense(network.dim_hidden[block], dtype=network.dtype)]
    if network.norm == "batch_norm":
        found.append(layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, scale=False, dtype=network.dtype))
    elif network.norm == "layer_norm":
        found.append(layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=network.dtype))
    pooled = network.kind == "conv" and network.max_pool
    return [*found, layers.ReLU(dtype=network.dtype), *([layers.MaxPooling2D(dtype=network.dtype)] if pooled else [])]


def official_order(network: Network) -> list[str]:
    """The official names of the Keras network's weights, in its order."""
    name = "conv" if network.kind == "conv" else "w"
    found: list[str] = []
    for block in range(1, network.layers):
        norms = [f"model/{block - 1}/{kind}" for kind in ("gamma", "beta")]
        found += [f"{name}{block}", f"b{block}", *(each for each in norms if each in network.norms)]
    return [*found, f"w{network.layers}", f"b{network.layers}"]


def learner_of(config: Config, network: Network, weights: Mapping[str, Any]) -> OwnMAML:
    """MAML of the Keras network, with these weights by their official names; adapts what the official code adapts."""
    model, names = keras_network(network), official_order(network)
    for variable, name in zip(model.trainable_variables, names, strict=True):
        variable.assign(tf.reshape(weights[name], variable.shape))
    official = dict(zip(KerasModel(model, dtype=network.dtype).names, names, strict=True))
    own = KerasModel(model, lambda name: official[name] in network.adapted, network.dtype)
    if network.kind == "fc":
        own.compile()

    def loss(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The official loss."""
        if config.classification:
            return losses.xent(outputs, labels, config.update_batch_size)
        return losses.mse(outputs, labels)

    return OwnMAML(config, own, loss)
