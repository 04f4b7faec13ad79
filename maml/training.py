"""The training loop: next episodes, update, summarise, validate, save."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from maml import checkpoints
from maml.checkpoints import Progress
from maml.config import Config
from maml.data_generator import DataGenerator, Episodes
from maml.diagnosis import all_finite, first_non_finite
from maml.episode_image import draw_episode, episode_rows
from maml.errors import UserError
from maml.evaluation import Evaluator
from maml.interface import Algorithm, TrainState
from maml.networks import Weights
from maml.runs import CALL_FIELDS, record_run
from maml.summaries import SummaryWriter

# Iterations are run many to a call, up to about this many seconds, so that the progress line
# moves and Ctrl-C is heard.
SECONDS_PER_CALL = 0.5


class Trained(NamedTuple):
    """How a training ended.

    finished: False if it was interrupted.
    iterations: done by this call.
    seconds: they took, summaries, validations and checkpoints included.
    """

    state: TrainState
    progress: Progress
    finished: bool
    iterations: int
    seconds: float


def make_update(model: Algorithm, data: DataGenerator) -> Callable[[TrainState, tf.Tensor, tf.Tensor], tuple]:
    """The compiled `update(state, first, count)` → (state, last loss, finite): `count` iterations from `first` on.

    Episodes are sampled inside, so nothing but the state goes in and out. `finite`: whether every
    loss and everything in the new state is.
    """
    config = model.config

    def episodes_of(iteration: tf.Tensor) -> Episodes:
        return data.episodes("train", iteration, config.meta_batch_size)

    @tf.function(jit_compile=model.compiled, autograph=False)
    def update(state: TrainState, first: tf.Tensor, count: tf.Tensor) -> tuple[TrainState, tf.Tensor, tf.Tensor]:
        # XLA would make labels anew in every kernel that reads them, if they were made in the same iteration.
        ahead = model.compiled

        def body(iteration: tf.Tensor, drawn: Any, state: TrainState, loss: tf.Tensor, finite: tf.Tensor) -> tuple:
            state, loss = model.update(state, drawn if ahead else episodes_of(iteration), iteration)
            drawn = episodes_of(iteration + 1) if ahead else ()
            return iteration + 1, drawn, state, loss, finite & tf.math.is_finite(loss)

        drawn = episodes_of(first) if ahead else ()
        start = (first, drawn, state, tf.constant(0.0, config.dtype), tf.constant(True))
        _, _, state, loss, finite = tf.while_loop(
            lambda iteration, *_: iteration < first + count, body, start, parallel_iterations=1
        )
        # A weight or a mean of Adam's that is not finite never becomes so again: one look at the end sees it.
        return state, loss, finite & all_finite(state)

    return update


def make_gradient(model: Algorithm, data: DataGenerator) -> Callable[[Weights, tf.Tensor], Weights]:
    """The compiled `gradient(weights, iteration)` of an iteration's loss, before clipping and Adam."""

    @tf.function(jit_compile=model.compiled, autograph=False)
    def gradient(weights: Weights, iteration: tf.Tensor) -> Weights:
        episodes = data.episodes("train", iteration, model.config.meta_batch_size)
        return model.gradient(weights, episodes, iteration)[1]

    return gradient


def restore_latest(folder: Path, template: TrainState) -> tuple[TrainState, Progress] | None:
    """The newest checkpoint that is whole; a damaged one is named and the one before it is used.

    Raises:
        UserError: there are checkpoints and none can be used.
    """
    errors = []
    for checkpoint in reversed(checkpoints.list_checkpoints(folder)):
        try:
            restored = checkpoints.restore(checkpoint, template)
        except UserError as error:
            errors.append(str(error))
            continue
        for message in errors:
            print(f"{message}. Using {checkpoint.prefix.name} instead.", file=sys.stderr)
        return restored
    if errors:
        raise UserError(errors[0])
    return None


def train(config: Config, model: Algorithm, data: DataGenerator, folder: Path) -> Trained:
    """Trains until `config.total_iterations` or Ctrl-C, going on from the newest checkpoint."""
    return _Training(config, model, data, folder).run()


class _Training:
    """One call of `train`: the loop and what it calls, with the state they share."""

    def __init__(self, config: Config, model: Algorithm, data: DataGenerator, folder: Path):
        self.config, self.model, self.data, self.folder = config, model, data, folder
        self.update, self.evaluator = make_update(model, data), Evaluator(model, data)
        self.gradient = make_gradient(model, data)
        fresh = (model.init_state(), Progress(0, np.zeros([0, len(model.reported)]), -np.inf))
        checkpoints.remove_unfinished(folder)
        self.state, progress = restore_latest(folder, fresh[0]) or fresh
        self.start = self.iteration = progress.iteration
        self.per_call = 1
        self.pending, self.best = [tuple(row) for row in progress.pending], progress.best
        self.skipped = progress.skipped
        if self.start:
            print(f"Going on from iteration {self.start} ({folder})")

    def run(self) -> Trained:
        config, begin = self.config, time.perf_counter()
        if self.iteration < config.total_iterations:
            record_run(self.folder, config)
        self.writer = SummaryWriter(self.folder, config.log)
        if self.iteration == 0:
            flags = config.to_dict()
            self.writer.flags(flags, {name: value for name, value in flags.items() if name not in CALL_FIELDS})
        with (
            _Interrupt() as interrupt,
            tqdm(total=config.total_iterations, initial=self.start, unit="it", disable=None) as self.bar,
        ):
            while True:
                if self.iteration > self.start or self.iteration == 0:
                    self.report()
                if self.iteration >= config.total_iterations or interrupt.heard:
                    break
                self.advance()
        if self.iteration > self.start and self.iteration % config.save_interval:
            self.save()
        self.writer.close()
        finished = self.iteration >= config.total_iterations
        return Trained(self.state, self.progress, finished, self.iteration - self.start, time.perf_counter() - begin)

    @property
    def progress(self) -> Progress:
        pending = np.array(self.pending, np.float64).reshape(-1, len(self.model.reported))
        return Progress(self.iteration, pending, self.best, self.skipped)

    def advance(self) -> None:
        """Runs iterations up to the next one at which something is due, or for half a second."""
        config = self.config
        intervals = [config.summary_interval, config.save_interval, config.validation_interval]
        due = min(interval - self.iteration % interval for interval in intervals)
        count = min(due, config.total_iterations - self.iteration, self.per_call)
        begin = time.perf_counter()
        state, _, finite = self.update(self.state, tf.constant(self.iteration), tf.constant(count))
        self.state = state if finite else self.one_by_one(count)
        each = (time.perf_counter() - begin) / count
        # The first call compiles; its time says nothing.
        if self.iteration > self.start:
            self.per_call = max(1, int(SECONDS_PER_CALL / each))
        self.iteration += count
        self.bar.update(count)

    def one_by_one(self, count: int) -> TrainState:
        """Repeats iterations not all of which were finite; stops at the first that is not, or skips those."""
        state = self.state
        for iteration in range(self.iteration, self.iteration + count):
            updated, _, finite = self.update(state, tf.constant(iteration), tf.constant(1))
            if finite:
                state = updated
            elif self.config.on_nan == "skip":
                self.skipped += 1
            else:
                self.refuse(state, iteration)
        return state

    def refuse(self, state: TrainState, iteration: int) -> None:
        """Raises UserError that names what is not finite in this iteration."""
        episodes = self.data.episodes("train", iteration, self.config.meta_batch_size)
        culprit = first_non_finite(self.model, state, episodes, iteration)
        saved = [str(checkpoint.iteration) for checkpoint in checkpoints.list_checkpoints(self.folder)]
        raise UserError(
            f"iteration {iteration}: the {culprit} is not finite; try a lower --update_lr or --meta_lr, or "
            f"--on_nan=skip. Nothing was saved since iteration {saved[-1] if saved else 0} ({self.folder})"
        )

    def report(self) -> None:
        """Summarises, prints, validates and saves, each when it is due."""
        config, iteration = self.config, self.iteration
        if iteration % config.summary_interval == 0:
            self.summarise()
        if config.histograms and iteration % config.validation_interval == 0:
            self.draw_histograms()
        if iteration and iteration % config.print_interval == 0 and self.pending:
            self.print_line()
        if iteration and config.val_tasks and iteration % config.validation_interval == 0:
            self.validate()
        if iteration and iteration % config.save_interval == 0:
            self.save()

    def summarise(self) -> None:
        """Measures every step on the tasks of the coming update, as the official summaries do."""
        config = self.config
        measures = self.evaluator.batch(
            self.state.weights, "train", self.iteration, config.meta_batch_size, config.evaluation_updates
        )
        self.write_measures("train", measures)
        self.pending.append(self.reported(measures))
        self.bar.set_postfix_str(" → ".join(f"{value:.3g}" for value in self.pending[-1]), refresh=False)

    def write_measures(self, split: str, measures: dict[str, np.ndarray]) -> None:
        """Writes measures for TensorBoard."""
        columns = self.model.columns(self.config.evaluation_updates)
        self.writer.measures(split, measures, columns, self.model.reported[-1], self.iteration)

    def reported(self, measures: dict[str, np.ndarray]) -> tuple[float, ...]:
        """Means over the tasks of what is printed: accuracies, for the sinusoid losses."""
        means = measures["accuracy" if self.config.classification else "loss"].mean(0)
        return tuple(float(means[column]) for column in self.model.reported)

    def print_line(self) -> None:
        """The official line: mean pre- and post-update accuracy (sinusoid: loss) since the last one."""
        pretraining = self.config.pretraining
        values = ", ".join(str(value) for value in np.mean(self.pending, 0))
        self.pending = []
        if self.iteration < pretraining:
            self.say(f"Pretrain Iteration {self.iteration}: {values}")
        else:
            self.say(f"Iteration {self.iteration - pretraining}: {values}")
        if self.skipped:
            self.say(f"Skipped so far: {self.skipped} updates that were not finite")

    def validate(self) -> None:
        """Measures the validation tasks and keeps the checkpoint if it is the best so far."""
        config = self.config
        measures = self.evaluator.tasks(
            self.state.weights,
            "val",
            config.val_tasks,
            config.evaluation_updates,
            progress=lambda blocks: tqdm(blocks, "validation", unit="block", disable=None, leave=False),
        )
        self.write_measures("val", measures)
        if config.log and config.classification and self.tenth_of_run():
            self.draw_episode()
        values = self.reported(measures)
        self.say(f"Validation results: {', '.join(map(str, values))}")
        value = values[-1] if config.classification else -values[-1]
        if value > self.best:
            self.best = value
            checkpoints.save(self.folder, self.state, self.progress, stem="best", keep=1)

    def tenth_of_run(self) -> bool:
        """Whether another tenth of the run has passed since the last validation.

        TensorBoard shows ten images of a tag; more would only fill the disk.
        """
        total, last = self.config.total_iterations, self.iteration - self.config.validation_interval
        return 10 * self.iteration // total > 10 * last // total

    def draw_episode(self) -> None:
        """Draws the first validation task with what is predicted after as many steps as training takes, or a test."""
        config = self.config
        steps = config.num_updates if config.uses("num_updates") else config.evaluation_updates
        episodes, outputs = self.evaluator.first_task(self.state.weights, "val", steps)
        picture = draw_episode(*episode_rows(episodes, outputs, channels=config.image_shape[1]))
        self.writer.image("val", "episode", picture, self.iteration)

    def draw_histograms(self) -> None:
        """Draws the weights and the gradient of the coming update."""
        gradients = self.gradient(self.state.weights, tf.constant(self.iteration))
        self.writer.histograms(self.state.weights, gradients, self.iteration)

    def save(self) -> None:
        self.writer.flush()
        checkpoints.save(self.folder, self.state, self.progress)

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


class _Interrupt:
    """Remembers Ctrl-C (and SIGTERM) until the loop comes round; a second Ctrl-C ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "_Interrupt":
        self.heard = False
        self._before = [signal.getsignal(number) for number in self.SIGNALS]
        for number in self.SIGNALS:
            signal.signal(number, self._hear)
        return self

    def _hear(self, number, frame) -> None:
        if self.heard:
            raise KeyboardInterrupt
        self.heard = True

    def __exit__(self, *_) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)
