"""What Keras layers need to be exact to second order, and fast."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from maml import machine
from maml.errors import UserError
from maml.kernels.batch_norm import batch_norm, batch_norm_pool
from maml.kernels.convolution import conv2d

# Activations that keep the order of what they are given, so that the largest entry stays the largest.
INCREASING = {"linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "sigmoid", "tanh", "softplus", "softsign"}


def layers_of(model: Any) -> list[Any]:
    """All layers, those within layers, too."""
    return list(model._flatten_layers(include_self=False))


def refuse_inexact(model: Any) -> None:
    """Refuses layers that have no exact second derivative, and warns of those that stop a gradient by design.

    Raises:
        UserError: one is behind a layer with weights, so that the inner gradient goes through it.
    """
    behind = False
    for layer in layers_of(model):
        kind = type(layer).__name__
        interpolated = kind.startswith("UpSampling2D") and layer.interpolation != "nearest"
        if behind and (interpolated or kind == "Resizing"):
            raise UserError(
                f"layer {layer.name} ({kind}) has no exact second derivative: put it before the first layer with "
                "weights, or use UpSampling2D with interpolation='nearest'"
            )
        if kind == "SpectralNormalization" or getattr(layer, "renorm", False):
            print(f"warning: layer {layer.name} ({kind}) stops a gradient by design: first order through it")
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False  # cuDNN's recurrent kernels have no second derivative
        if getattr(layer, "activity_regularizer", None) or any(
            getattr(variable, "regularizer", None) for variable in getattr(layer, "_trainable_variables", [])
        ):
            raise UserError(f"layer {layer.name} has a regularizer, which no loss here counts: add it to your loss")
        behind = behind or bool(layer.trainable_variables and not hasattr(layer, "layers"))


def batch_norms(model: Any) -> dict[Any, Any]:
    """{batch-norm: the 2×2 max pooling after it, or None}.

    Only activations that keep the order may stand between them: then pooling may come first, which `batch_norm_pool`
    does in one with the normalization.
    """
    calls = _calls(model)
    behind, found = _only_layer_behind(calls), {}
    for layer in filter(_is_plain_batch_norm, layers_of(model)):
        after = behind.get(layer)
        while after is not None and _keeps_order(after):
            after = behind.get(after)
        found[layer] = after if after is not None and _pools_by_two(after) else None
    times = collections.Counter(found.values())  # one pooling may be behind several, but then behind nothing else
    return {
        norm: pool if pool is not None and times[pool] == len(calls[pool]) else None for norm, pool in found.items()
    }


class Exchange(NamedTuple):
    """A method of a layer, by its name, and the function that stands in for it."""

    layer: Any
    method: str
    function: Callable[..., tf.Tensor]


def exchanges(model: Any) -> list[Exchange]:
    """What our kernels compute of a model: batch-norms, each with the pooling after it, and convolutions.

    A batch-norm called with `training=False`, as in `base(inputs, training=False)`, keeps its running statistics.
    """
    plain = filter(_is_plain_convolution, layers_of(model))
    found = [Exchange(layer, "convolution_op", functools.partial(_convolved, layer)) for layer in plain]
    norms = batch_norms(model)
    found += [Exchange(norm, "call", functools.partial(_normalized, norm, pool)) for norm, pool in norms.items()]
    return found + [Exchange(pool, "call", lambda inputs: inputs) for pool in set(norms.values()) if pool is not None]


@contextlib.contextmanager
def by_kernels(exchanged: list[Exchange]) -> Iterator[None]:
    """With these functions in place of the layers' methods, while a model is traced."""
    for layer, method, function in exchanged:
        object.__setattr__(layer, method, function)
    try:
        yield
    finally:
        for layer, method, _ in exchanged:
            object.__delattr__(layer, method)


def body_and_head(model: Any, variables: Any) -> tuple[Any, Any] | None:
    """Two Keras models, one behind the other: up to the layer that has these variables, and from there on.

    None where something goes past that layer's input, where there is nothing before it, or where a mask would get lost.
    """
    import keras

    graph, owned = _graph_of(model), set(map(id, variables))
    masks = any(type(layer).__name__ == "Masking" or getattr(layer, "mask_zero", False) for layer in layers_of(model))
    if graph is None or masks or len(tf.nest.flatten(graph._outputs_struct)) > 1:
        return None
    for layer in graph.layers:
        if set(map(id, layer.trainable_variables)) == owned and not hasattr(layer, "layers"):
            try:
                between = layer.input
                if any(between is given for given in tf.nest.flatten(graph._inputs_struct)):
                    return None
                return keras.Model(graph._inputs_struct, between), keras.Model(between, graph._outputs_struct)
            except (ValueError, AttributeError):  # not all of it comes through here; it is called twice
                return None
    return None


def _convolved(layer: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    # On a GPU the tasks of a model of your own come one after another, as cuDNN's convolutions can compute them.
    if machine.on_gpu() or not inputs.shape[1:].is_fully_defined():
        return type(layer).convolution_op(layer, inputs, kernel)
    return conv2d(inputs, kernel, layer.strides[0])


def _normalized(norm: Any, pool: Any, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
    if not training or mask is not None or len(inputs.shape) != 4:
        normalized = type(norm).call(norm, inputs, training=training, mask=mask)
        return normalized if pool is None else type(pool).call(pool, normalized)
    scale, shift = (
        None if variable is None else tf.convert_to_tensor(variable) for variable in (norm.gamma, norm.beta)
    )
    out = batch_norm(inputs, norm.epsilon) if pool is None else batch_norm_pool(inputs, norm.epsilon, scale)
    out = out if scale is None else out * scale
    return out if shift is None else out + shift


def _calls(model: Any) -> dict[Any, list[Any]]:
    """{layer: what it reads from, a list of layers for each call}; None is the model's caller."""
    calls: dict[Any, list[Any]] = {}
    for graph in filter(None, map(_graph_of, (model, *layers_of(model)))):
        for node in itertools.chain.from_iterable(graph._nodes_by_depth.values()):
            calls.setdefault(node.operation, []).append([parent.operation for parent in node.parent_nodes])
        returned = [output._keras_history.operation for output in tf.nest.flatten(graph._outputs_struct)]
        calls.setdefault(None, []).append(returned)
    return calls


def _only_layer_behind(calls: dict[Any, list[Any]]) -> dict[Any, Any]:
    """{layer: the one that alone reads what it returns}, of layers that are called once."""
    readers: dict[Any, list[Any]] = {}
    for reader, each in calls.items():
        for layer in itertools.chain.from_iterable(each):
            readers.setdefault(layer, []).append(reader)
    return {layer: read[0] for layer, read in readers.items() if len(read) == len(calls.get(layer, ())) == 1}


# Below, types and functions are compared, not their names: a layer of your own may be called like one of Keras'.


def _graph_of(model: Any) -> Any:
    """The graph that a Sequential or functional model calls; None of layers, and of models with another `call`."""
    from keras import Sequential
    from keras.src.models.functional import Functional

    if type(model).call is Sequential.call:
        return model._functional
    return model if type(model).call is Functional.call else None


def _is_plain_batch_norm(layer: Any) -> bool:
    from keras.layers import BatchNormalization

    if type(layer) is not BatchNormalization or layer.axis not in (-1, 3) or not layer.trainable:
        return False
    special = getattr(layer, "renorm", False) or getattr(layer, "synchronized", False)
    return not special and layer.compute_dtype in ("float32", "float64")


def _is_plain_convolution(layer: Any) -> bool:
    from keras.layers import Conv2D

    if type(layer) is not Conv2D or layer.padding != "same" or layer.data_format != "channels_last":
        return False
    square = len(set(layer.kernel_size)) == len(set(layer.strides)) == 1
    return square and layer.groups == 1 and set(layer.dilation_rate) == {1}


def _keeps_order(layer: Any) -> bool:
    from keras import activations, layers

    if type(layer) in (layers.ReLU, layers.LeakyReLU):
        return layer.negative_slope >= 0 and not getattr(layer, "threshold", 0)
    known = [getattr(activations, name, None) for name in INCREASING]
    return type(layer) is layers.Activation and any(layer.activation is each for each in known)


def _pools_by_two(layer: Any) -> bool:
    from keras.layers import MaxPooling2D

    if type(layer) is not MaxPooling2D or layer.padding != "valid":
        return False
    return tuple(layer.pool_size) == tuple(layer.strides) == (2, 2) and layer.data_format == "channels_last"
