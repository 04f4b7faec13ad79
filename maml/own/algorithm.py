"""MAML for the user's model and loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from maml.algorithms import losses
from maml.algorithms.anil import ANIL
from maml.config import Config
from maml.data_generator import Episodes
from maml.errors import UserError, one_line
from maml.models.exact import exact_functions
from maml.models.function_model import FunctionModel
from maml.models.keras_model import KerasModel
from maml.models.protocol import Weights

LOSSES = {"mse": losses.mse, "xent": losses.mean_xent}


class OwnMAML(ANIL):
    """MAML for the user's model and loss; a body that is not adapted is computed only once, as in ANIL."""

    model: KerasModel | FunctionModel
    compiled = False  # Python draws the tasks, so XLA can compile an update but not the loop around it

    def __init__(self, config: Config, model: Any, loss: str | Callable[[Any, Any], tf.Tensor]):
        """Builds the learner.

        Args:
            loss: "mse" or "xent", both means, or a function of (outputs, y) that returns a scalar.
        """
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        super().__init__(config, model)
        for name in ("gradient", "apply", "evaluate") if model.compiled else ():
            setattr(self, name, _compiled(getattr(self, name)))

    def of(self, config: Config) -> "OwnMAML":
        """The same learner with another setting."""
        return OwnMAML(config, self.model, self.loss)

    def of_model(self, model: Any) -> "OwnMAML":
        """The same loss and setting with another model."""
        return OwnMAML(self.config, model, self.loss)

    @property
    def adapted(self) -> frozenset[str]:
        """The weights that `adapt` selected."""
        return self.model.adapted

    def loss_func(self, outputs: Any, labels: Any, shots: Any = None) -> tf.Tensor:
        """Loss of one task, []."""
        with exact_functions():
            return self.loss(outputs, labels)

    def adapt(self, weights: Weights, inputa: Any, labela: Any, num_updates: int) -> Weights:
        """The fast weights after `num_updates` steps on one task's support set."""
        with self.model.quiet():
            if self.parts:
                return self.on_features.adapt(weights, self.parts[0](weights, inputa), labela, num_updates)
            for step in range(num_updates):
                weights, _, _ = self.inner_step(weights, inputa, labela, step)
        return self.of_step(weights, max(0, num_updates - 1))

    def predict(self, adapted: Weights, inputa: Any, inputb: Any) -> Any:
        """Outputs of one task's query set under adapted weights."""
        return self.model.apply(adapted, inputb)

    def evaluate(
        self, weights: Weights | Sequence[Weights], episodes: Episodes, num_updates: int
    ) -> dict[str, tf.Tensor]:
        """As MAML's, without dropout."""
        with self.model.quiet():
            return super().evaluate(weights, episodes, num_updates)


def _compiled(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled with XLA.

    Raises:
        UserError: when it is called and uses something that XLA or the task axis does not support.
    """

    @partial(tf.function, autograph=False)
    def called(*arguments: Any) -> Any:
        try:
            return tf.function(compute, jit_compile=True, autograph=False)(*arguments)
        except Exception as error:  # of whatever kind TensorFlow's converter raises
            reason = one_line(error, 200)
            raise UserError(f"jit_compile=True: this model or loss cannot be compiled so ({reason})") from error

    return called


def model_of(model: Any, adapt: Any, dtype: str = "float32") -> KerasModel | FunctionModel:
    """Wraps a Keras model, or (weights, forward), as a `Model`."""
    if isinstance(model, tuple):
        if len(model) != 2 or not isinstance(model[0], Mapping) or not callable(model[1]):
            raise UserError("model: a tuple must be (weights, forward), a dict of arrays and a function of both")
        return FunctionModel(*model, adapt=adapt, dtype=dtype)
    if not hasattr(model, "stateless_call"):
        raise UserError(f"model: {type(model).__name__}, needed a Keras 3 model or (weights, forward)")
    return KerasModel(model, adapt, dtype)
