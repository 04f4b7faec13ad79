"""A Keras model as a `Model`: a function of its weights, exact to second order."""

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from maml.errors import UserError, one_line
from maml.models.exact import exact_functions
from maml.models.keras_layers import (
    body_and_head,
    by_kernels,
    exchanges,
    layers_of,
    refuse_inexact,
)
from maml.models.protocol import Body, Model, Weights

# Layers whose outputs differ by chance in training, and what says how much.
NOISE = {"rate": ("Dropout", "SpatialDropout", "AlphaDropout", "GaussianDropout"), "stddev": ("GaussianNoise",)}


class KerasModel(Model):
    """A built Keras model of any structure; it is called with `training=True`, so batch-norm is transductive.

    The weights are its trainable variables, by `<layer>/<variable>`; numbers that Keras appended to layers' names are
    counted anew, because they depend on what else the process has built. Other variables stay as they are, but
    for the seeds of dropout, which follow from the inputs: every task has masks of its own, and a repetition the same.
    """

    def __init__(self, model: Any, adapt: str | Callable[[str], bool] = "all", dtype: str = "float32"):
        """Takes over a model's weights as the first ones.

        Args:
            model: a keras.Model with the TensorFlow backend.
            adapt: what the inner loop adapts: "all", "head" (the last layer with weights) or a function of a name.

        Raises:
            UserError: it is not built, has no weights, or has a layer whose second derivative is not exact.
        """
        check_backend()
        self.keras, self.dtype = model, dtype
        if not model.built:
            raise UserError("the Keras model is not built: give it a keras.Input, or call it once on an example")
        self.names = weight_names([variable.path for variable in model.trainable_variables])
        if not self.names:
            raise UserError("the Keras model has no trainable weights, so there is nothing to learn")
        refuse_inexact(model)
        last = self.names[-1].rpartition("/")[0]
        self.head = frozenset(name for name in self.names if name.rpartition("/")[0] == last)
        self.adapted = chosen(adapt, self.names, self.head)
        self.exchanges = exchanges(model)

    def init(self, seed: int) -> Weights:
        """The model's own weights, whatever the seed."""
        return {
            name: tf.cast(tf.convert_to_tensor(variable.value), self.dtype)
            for name, variable in zip(self.names, self.keras.trainable_variables, strict=True)
        }

    def apply(self, weights: Weights, inputs: Any, reference: int | tf.Tensor | None = None) -> Any:
        """The model's outputs for one task's inputs, of any structure."""
        other = [
            _seed_of(inputs) if _is_seed(variable) else tf.convert_to_tensor(variable.value)
            for variable in self.keras.non_trainable_variables
        ]
        with exact_functions(), by_kernels(self.exchanges):
            # As Keras' own `fit`: a model whose `call` has no such argument is called without.
            mode = {"training": True} if getattr(self.keras, "_call_has_training_arg", True) else {}
            outputs, _ = self.keras.stateless_call([weights[name] for name in self.names], other, inputs, **mode)
        return outputs

    def compile(self) -> None:
        """Lets XLA compile it.

        Raises:
            UserError: it pools by the largest, which XLA does inexactly in float32.
        """
        for layer in layers_of(self.keras):
            if (kind := type(layer).__name__).startswith(("MaxPool", "GlobalMaxPool")):
                raise UserError(
                    f"jit_compile=True: layer {layer.name} ({kind}): XLA's is inexact; leave jit_compile out"
                )
        self.compiled = True

    def parts(self) -> tuple[Body, Model] | None:
        """What comes before the last layer with weights, and the rest; see `Model.parts`."""
        variables = zip(self.names, self.keras.trainable_variables, strict=True)
        found = body_and_head(self.keras, [variable for name, variable in variables if name in self.head])
        return (self._part(found[0]).apply, self._part(found[1])) if found else None

    def _part(self, part: Any) -> "KerasModel":
        """A Keras model that shares its variables with this one, as a model whose weights have the same names."""
        known = {id(variable): name for name, variable in zip(self.names, self.keras.trainable_variables, strict=True)}
        made = copy.copy(self)
        made.keras, made.exchanges, made.compiled = part, exchanges(part), False
        made.names = [known[id(variable)] for variable in part.trainable_variables]
        made.adapted = self.adapted.intersection(made.names)
        return made

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Without dropout and other noise, for what is traced in the block: testing and prediction."""
        changed = []
        for layer in layers_of(self.keras):
            for name, kinds in NOISE.items():
                if type(layer).__name__.startswith(kinds) and getattr(layer, name, None):
                    changed.append((layer, name, getattr(layer, name)))
                    setattr(layer, name, 0.0)
        try:
            yield
        finally:
            for layer, name, value in changed:
                setattr(layer, name, value)

    def in_float64(self) -> "KerasModel":
        """The same model, rebuilt to compute in float64.

        Raises:
            UserError: Keras cannot rebuild it from its config.
        """
        try:
            again = type(self.keras).from_config(_doubled(self.keras.get_config()))
            if not again.built:
                again.build(self.keras.input_shape)
            again.set_weights(self.keras.get_weights())
        except Exception as error:  # of whatever kind the user's classes raise
            reason = one_line(error, 200)
            raise UserError(f"the Keras model cannot be rebuilt in float64 ({reason}): give it a get_config") from error
        made = KerasModel(again, dtype="float64")
        made.adapted = frozenset(made.names[self.names.index(name)] for name in self.adapted)
        made.compiled = self.compiled
        return made


def check_backend() -> None:
    """Raises UserError where Keras computes with another library than TensorFlow."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError(f"Keras runs on {keras.backend.backend()}, needed TensorFlow: set KERAS_BACKEND=tensorflow")


def chosen(adapt: str | Callable[[str], bool], names: list[str], head: frozenset[str]) -> frozenset[str]:
    """The names of the weights that the inner loop adapts.

    Raises:
        UserError: there are none.
    """
    if callable(adapt):
        try:
            found = frozenset(name for name in names if adapt(name))
        except Exception as error:  # of whatever kind the user's function raises
            reason = one_line(error, named=True)
            raise UserError(f"adapt raised {reason}; needed a function of a weight's name") from error
    elif adapt in ("all", "head"):
        found = frozenset(names) if adapt == "all" else head
    else:
        raise UserError(f"adapt={adapt!r}: must be all, head, or a function of a weight's name")
    if not found:
        raise UserError(f"adapt chooses none of the weights, which are: {', '.join(names[:20])}")
    return found


def weight_names(paths: list[str]) -> list[str]:
    """Names of variables that do not depend on what the process built before: dense_7/kernel, … → dense/kernel, ….

    The layers of a name are counted in their order: dense, dense_1, ….
    """
    counted: dict[str, str] = {}
    used: dict[str, int] = {}
    names = []
    for path in paths:
        parts = path.split("/")
        renamed: list[str] = []
        for depth in range(len(parts) - 1):
            prefix = "/".join(parts[: depth + 1])
            if prefix not in counted:
                plain = "/".join([*renamed, re.sub(r"_\d+$", "", parts[depth])])
                number = used[plain] = used.get(plain, -1) + 1
                counted[prefix] = plain.rpartition("/")[2] + (f"_{number}" if number else "")
            renamed.append(counted[prefix])
        names.append("/".join([*renamed, parts[-1]]))
    return names


def _is_seed(variable: Any) -> bool:
    return "seed_generator_state" in variable.path


def _seed_of(inputs: Any) -> tf.Tensor:
    """A seed that follows from the inputs, uint32 [2]."""
    first = tf.stop_gradient(tf.nest.flatten(inputs)[0])
    bits = tf.bitcast(tf.cast(first, tf.float32), tf.int32)
    total = tf.reduce_sum(bits)
    return tf.bitcast(tf.stack([total, total * 31 + 7]), tf.uint32)


def _doubled(config: Any) -> Any:
    """A config whose dtypes and policies are float64."""
    if isinstance(config, dict):
        return {name: _doubled(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(_doubled, config))
    return "float64" if config == "float32" else config
