"""Meta-training of the user's model, in the same loop as the official settings."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from maml.config import Config
from maml.devices import replicas
from maml.errors import UserError, one_line
from maml.files import write_json
from maml.own import checks, record
from maml.own.algorithm import OwnMAML, model_of
from maml.own.learner import OwnLearner
from maml.own.tasks import OwnTasks
from maml.training.loop import train as train_run
from maml.training.runs import lock_run, open_run, record_run, run_folder

OWN = {"datasource": "own", "norm": "None", "meta_batch_size": 4}


def train(
    model: Any,
    tasks: Any,
    *,
    val: Any = None,
    loss: str | Callable[[Any, Any], tf.Tensor] = "mse",
    adapt: str | Callable[[str], bool] = "all",
    learn_rates: str | None = None,
    jit_compile: bool = False,
    logdir: str | os.PathLike = "logs/own",
    **flags: Any,
) -> OwnLearner:
    """Meta-trains your own model with MAML, or resumes the run in `logdir`.

    Args:
        model: a built Keras model (its weights are the initial ones), or (weights, forward): arrays by name, and a
            function of (weights, x).
        tasks: a function of rng (numpy.random.Generator) that returns (support x, support y, query x, query y), a list
            of such tasks, a tf.data.Dataset of them, or an object with `episodes(split, index, count)`. x and y may be
            structures of arrays. All tasks must have the same shapes.
        val: the same for validation; None: `tasks` if it is an object that handles splits, otherwise no validation.
        loss: "mse" or "xent" (logits with labels or one-hot rows), both means, or a function of (outputs, y) that
            returns a scalar.
        adapt: what the inner loop adapts: "all", "head" (the default with algorithm="anil") or a
            function of a weight's name.
        learn_rates: None, "weight" (an inner rate for every weight, Meta-SGD) or "step" (for every tensor and step).
        jit_compile: compile the update with XLA, with all tasks in the same operations: for small dense models,
            which are dominated by op dispatch. The first update takes longer. Not for max pooling,
            whose second derivative XLA computes inexactly in float32: Keras models with it are refused.
        logdir: folder of the runs; each setting gets a subfolder.
        flags: flags of `main.py`: algorithm ("maml", "anil", "metasgd" or "maml++"),
            update_lr, num_updates, metatrain_iterations, meta_batch_size, meta_lr, seed, ….

    Returns:
        The trained learner.

    Raises:
        UserError: something does not fit; the message says what, and what to do.
    """
    given = _given(flags, loss, learn_rates, logdir)
    if flags.get("algorithm") == "anil" and adapt == "all":
        adapt = "head"
    config = Config.from_flags(given)
    own = model_of(model, adapt, config.dtype)
    if jit_compile:
        own.compile()
    replicas.check_divides(config.meta_batch_size, config.accumulate)
    sources = {"train": tasks, "val": val if val is not None else _splitting(tasks)}
    data = OwnTasks(config, sources)
    learner = OwnMAML(config, own, loss)
    checks.check_model(learner, data, loss)
    if "val" not in data.draws:
        config = learner.config = data.config = config.replace(val_tasks=0)
    say = print if replicas.is_chief() else lambda line: None
    named = loss if isinstance(loss, str) else getattr(loss, "__name__", "own")
    say(f"Loss: {named}" + (", a mean over the examples (the official flags' is N times that)" * (named == "xent")))
    say(f"Weights: {len(own.names)} tensors, of which {len(own.adapted)} are adapted")
    about = record.about_of(model, tasks, loss, adapt, own) | {"like": record.shapes(data.like)}
    with _recorded(config, about, data.fingerprint) as folder, _explained(data):
        trained = train_run(config, learner, data, folder)
    say(f"Trained: {trained.progress.iteration} iterations ({folder})")
    return OwnLearner(config, learner, trained.state.weights, folder)


def _given(flags: dict[str, Any], loss: Any, learn_rates: str | None, logdir: Any) -> dict[str, Any]:
    checks.check_loss(loss)
    if not isinstance(logdir, str | os.PathLike):
        raise UserError(f"logdir={logdir!r}: must be a path")
    if "datasource" in flags:
        raise UserError(f"datasource={flags['datasource']!r}: maml.train takes your tasks; main.py has data sources")
    own = OWN | {"loss": loss if isinstance(loss, str) else "own", "logdir": os.path.expanduser(os.fspath(logdir))}
    return own | ({"learn_rates": learn_rates} if learn_rates else {}) | flags


def _splitting(tasks: Any) -> Any:
    return tasks if hasattr(tasks, "task") or hasattr(tasks, "episodes") else None


@contextlib.contextmanager
def _recorded(config: Config, about: dict[str, Any], fingerprint: dict[str, str]) -> Iterator[Path]:
    """The folder of a run, locked and with its records written; with several workers only the chief does that."""
    if not replicas.is_chief():
        yield run_folder(config)
        return
    with lock_run(config):
        folder, notes = open_run(config, fingerprint)
        for note in notes:
            print(note)
        record.check_same_model(folder, about)
        record_run(folder, config, fingerprint)
        write_json(folder / record.ABOUT, about)
        yield folder


@contextlib.contextmanager
def _explained(data: OwnTasks) -> Iterator[None]:
    """Turns errors of TensorFlow's in the block into what is behind them.

    Raises:
        UserError: a task is wrong, another worker is gone, or there is no second derivative.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise data.error or replicas.lost(error) or error from None
    except LookupError as error:  # of TensorFlow's registry of gradients
        raise UserError(
            f"the model or the loss has no second derivative in TensorFlow ({one_line(error)}): replace the operation, "
            "or give stop_grad=True for first-order MAML"
        ) from error
