"""A function of (weights, inputs) as a `Model`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from maml.errors import UserError
from maml.models.exact import exact_functions
from maml.models.keras_model import chosen
from maml.models.protocol import Model, Weights


class FunctionModel(Model):
    """First weights, arrays by name (dicts within dicts too), and `forward(weights, inputs)` of tensors."""

    def __init__(
        self,
        weights: Mapping[str, Any],
        forward: Callable[[Any, Any], Any],
        adapt: str | Callable[[str], bool] = "all",
        dtype: str = "float32",
    ):
        """Keeps both.

        Args:
            adapt: what the inner loop adapts: "all" or a function of a weight's name, "layer/kernel" where dicts are
                nested.

        Raises:
            UserError: there are no weights, or "head" is asked for, which a function does not name.
        """
        if adapt == "head":
            raise UserError('adapt="head": a function has no layers; name the weights by a function of their names')
        self.first, self.forward, self.dtype = _flat(weights), forward, dtype
        for name, value in self.first.items():
            if np.asarray(value).dtype.kind not in "fiub":
                raise UserError(f"the weight {name} holds {np.asarray(value).dtype}, needed numbers")
        if not self.first:
            raise UserError("the weights are empty, so there is nothing to learn")
        self.names, self.head = list(self.first), frozenset()
        self.adapted = chosen(adapt, self.names, self.head)

    def init(self, seed: int) -> Weights:
        """The given weights, whatever the seed."""
        return {name: tf.constant(value, self.dtype) for name, value in self.first.items()}

    def apply(self, weights: Weights, inputs: Any, reference: int | tf.Tensor | None = None) -> Any:
        """What the function returns."""
        with exact_functions():
            return self.forward(_nested({name: weights[name] for name in self.names}), inputs)

    def compile(self) -> None:
        """Lets XLA compile it."""
        self.compiled = True

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing to switch off."""
        yield

    def in_float64(self) -> "FunctionModel":
        """The same function of weights in float64."""
        copy = FunctionModel(self.first, self.forward, lambda name: name in self.adapted, "float64")
        copy.compiled = self.compiled
        return copy


def _flat(weights: Mapping[str, Any], above: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}/")
        else:
            found[above + name] = np.asarray(value)
    return found


def _nested(weights: Weights) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in weights.items():
        *above, last = name.split("/")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found
