"""The training loop: next episodes, update, summarize, validate, save."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from maml.algorithms.protocol import Algorithm
from maml.config import Config, names_of
from maml.data_generator import TaskSource
from maml.devices import replicas
from maml.errors import UserError
from maml.models.protocol import Weights
from maml.terminal import styled
from maml.training import checkpoints
from maml.training.checkpoints import Progress
from maml.training.diagnosis import first_non_finite
from maml.training.episode_image import draw_episode, episode_rows
from maml.training.evaluation import Evaluator
from maml.training.runs import record_run
from maml.training.summaries import SummaryWriter
from maml.training.updates import MOST_SUMMARIES, Updated, make_gradient, make_update

# Iterations are run many to a call, up to about this many seconds, so that the progress line
# moves and Ctrl-C is heard.
SECONDS_PER_CALL = 0.5


class Trained(NamedTuple):
    """How a training ended.

    finished: False if it was interrupted.
    iterations: done by this call.
    seconds: they took, summaries, validations and checkpoints included.
    """

    state: Any
    progress: Progress
    finished: bool
    iterations: int
    seconds: float


def restore_latest(folder: Path, model: Algorithm) -> tuple[Any, Progress] | None:
    """The newest checkpoint that is whole; a damaged one is named and the one before it is used.

    Raises:
        UserError: there are checkpoints and none can be used.
    """
    errors = []
    for checkpoint in reversed(checkpoints.list_checkpoints(folder)):
        try:
            restored = checkpoints.restore(checkpoint, model)
        except UserError as error:
            errors.append(str(error))
            continue
        for message in errors:
            print(f"{message}. Using {checkpoint.prefix.name} instead.", file=sys.stderr)
        return restored
    if errors:
        raise UserError(errors[0])
    return None


class Compiled(NamedTuple):
    """What a training calls. Tracing and compiling it takes seconds, so several trainings may share it."""

    update: Callable[[Any, tf.Tensor, tf.Tensor], Updated]
    evaluator: Evaluator
    gradient: Callable[[Weights, tf.Tensor], Weights]

    @classmethod
    def of(cls, config: Config, model: Algorithm, data: TaskSource) -> "Compiled":
        """Compiles nothing yet: that happens at the first call."""
        update = make_update(model, data, config.summary_interval)
        return cls(update, Evaluator(model, data), make_gradient(model, data))


def train(
    config: Config,
    model: Algorithm,
    data: TaskSource,
    folder: Path,
    compiled: Compiled | None = None,
    on_save: Callable[[int], None] = lambda iteration: None,
) -> Trained:
    """Trains until `config.total_iterations` or Ctrl-C, going on from the newest checkpoint.

    Args:
        folder: of the run.
        compiled: of an earlier training of the same model on the same data.
        on_save: called with the iteration after each checkpoint.
    """
    begin = time.perf_counter()
    run = _Training(config, model, data, folder, compiled or Compiled.of(config, model, data), on_save)
    with _Interrupt() as interrupt, run.opened():
        while run.iteration < config.total_iterations and not replicas.any_of(interrupt.heard):
            run.update()  # episodes, updates and summaries, many to a call
            run.charts()
            run.print_line()
            run.validate()
            run.save()
        run.save(last=True)
    replicas.any_of(False)  # no worker leaves while another one still has to be heard
    finished = run.iteration >= config.total_iterations
    return Trained(run.state, run.progress, finished, run.iteration - run.start, time.perf_counter() - begin)


class _Training:
    """The state that the steps of a training share."""

    def __init__(
        self,
        config: Config,
        model: Algorithm,
        data: TaskSource,
        folder: Path,
        compiled: Compiled,
        on_save: Callable[[int], None],
    ):
        self.config, self.model, self.data, self.folder = config, model, data, folder
        self.compiled, self.on_save = compiled, on_save
        self.state, progress = model.init_state(), Progress(0, np.zeros([0, len(model.reported)]), -np.inf)
        self.chief = replicas.is_chief()  # the others neither read the folder nor write or print
        replicas.check_alike({"flags": config.identity, "data": data.fingerprint})
        if self.chief:
            checkpoints.remove_unfinished(folder)
            self.state, progress = restore_latest(folder, model) or (self.state, progress)
        self.state = replicas.from_chief(self.state)
        progress = progress._replace(iteration=replicas.number_of_chief(progress.iteration))
        self.start = self.iteration = progress.iteration
        self.per_call = 1
        self.pending, self.best = [tuple(row) for row in progress.pending], progress.best
        self.skipped = progress.skipped
        if self.start and self.chief:
            print(f"Resuming from iteration {self.start} ({folder})")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The run's record, TensorBoard files and progress bar; at its very start the first summary, too."""
        config = self.config
        if self.iteration < config.total_iterations and self.chief:
            record_run(self.folder, config, self.data.fingerprint)
        self.writer = SummaryWriter(self.folder, config.log and self.chief)
        with tqdm(total=config.total_iterations, initial=self.start, unit="it", disable=replicas.silent()) as self.bar:
            if self.iteration == 0:
                flags = config.to_dict()
                self.writer.flags(flags, {name: flags[name] for name in names_of("network", "training", "watch")})
                measures = self.call(0, 0).measures
                self.writer.layout(list(measures), self.model.charts(self.state.weights, 0))
                self.summarize([0], measures)
                self.charts()
            yield
        self.writer.close()

    @property
    def progress(self) -> Progress:
        pending = np.array(self.pending, np.float64).reshape(-1, len(self.model.reported))
        return Progress(self.iteration, pending, self.best, self.skipped)

    def due(self, interval: int) -> bool:
        """Whether something that is done every `interval` iterations is due."""
        return self.iteration > 0 and self.iteration % interval == 0

    def update(self) -> None:
        """Runs iterations up to the next one at which something is due, or for half a second."""
        config, done = self.config, self.iteration
        intervals = [config.print_interval, config.save_interval, config.validation_interval]
        due = min(interval - done % interval for interval in intervals)
        room = MOST_SUMMARIES * config.summary_interval - done % config.summary_interval
        count = min(due, room, config.total_iterations - done, replicas.number_of_chief(self.per_call))
        begin = time.perf_counter()
        updated = self.call(done, count)
        if updated.finite:
            self.go_on(updated, count)
        else:
            self.one_by_one(count)
        # The first call compiles; its time says nothing.
        if done > self.start:
            self.per_call = max(1, int(SECONDS_PER_CALL * count / (time.perf_counter() - begin)))

    def call(self, first: int, count: int) -> Updated:
        """`count` iterations from `first` on."""
        return self.compiled.update(self.state, tf.constant(first), tf.constant(count))

    def go_on(self, updated: Updated, count: int) -> None:
        """Takes over what iterations led to, and the summaries on the way."""
        every, done = self.config.summary_interval, self.iteration
        self.state, self.iteration = updated.state, done + count
        self.bar.update(count)
        self.summarize(range(done + every - done % every, self.iteration + 1, every), updated.measures)

    def one_by_one(self, count: int) -> None:
        """Repeats iterations not all of which were finite; stops at the first that is not, or skips those."""
        for _ in range(count):
            updated = self.call(self.iteration, 1)
            if updated.finite:
                self.go_on(updated, 1)
            elif self.config.on_nan == "skip":
                self.skipped += 1
                self.go_on(self.call(self.iteration + 1, 0), 1)
            else:
                self.refuse()

    def refuse(self) -> None:
        """Raises UserError that names what is not finite in the coming iteration."""
        iteration = self.iteration
        episodes = self.data.episodes("train", iteration, self.config.meta_batch_size)
        culprit = first_non_finite(self.model, self.state, episodes, iteration)
        saved = [str(checkpoint.iteration) for checkpoint in checkpoints.list_checkpoints(self.folder)]
        raise UserError(
            f"iteration {iteration}: the {culprit} is not finite; try a lower --update_lr or --meta_lr, or "
            f"--on_nan=skip. Nothing was saved since iteration {saved[-1] if saved else 0} ({self.folder})"
        )

    def summarize(self, iterations: Collection[int], measures: dict[str, tf.Tensor]) -> None:
        """Writes and notes what was measured after as many iterations: [MOST_SUMMARIES, tasks, columns]."""
        if not iterations:
            return
        arrays = {name: values.numpy() for name, values in measures.items()}
        for i, iteration in enumerate(iterations):
            measured = {name: values[i] for name, values in arrays.items()}
            self.write_measures("train", measured, iteration)
            self.pending.append(self.reported(measured))
        self.bar.set_postfix_str(" → ".join(f"{value:.3g}" for value in self.pending[-1]), refresh=False)

    def write_measures(self, split: str, measures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes measures for TensorBoard."""
        columns = self.model.columns(self.config.evaluation_updates)
        self.writer.measures(split, measures, columns, self.model.reported[-1], iteration)

    def reported(self, measures: dict[str, np.ndarray]) -> tuple[float, ...]:
        """Means over the tasks of what is printed: accuracies, for the sinusoid losses."""
        means = measures["accuracy" if self.config.classification else "loss"].mean(0)
        return tuple(float(means[column]) for column in self.model.reported)

    def print_line(self) -> None:
        """The official line, when it is due: mean pre- and post-update accuracy (sinusoid: loss) since the last one."""
        if not self.due(self.config.print_interval) or not self.pending:
            return
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
        """Measures the validation tasks, when they are due, and keeps the checkpoint if it is among the best so far."""
        config = self.config
        if not config.val_tasks or not self.due(config.validation_interval):
            return
        measures = self.compiled.evaluator.tasks(
            self.state.weights,
            "val",
            config.val_tasks,
            config.evaluation_updates,
            progress=lambda blocks: tqdm(blocks, "validation", unit="block", disable=replicas.silent(), leave=False),
        )
        self.write_measures("val", measures, self.iteration)
        if config.log and config.image_shape[0] and self.chief and self.tenth_of_run():
            self.draw_episode()
        values = self.reported(measures)
        value = values[-1] if config.classification else -values[-1]
        mark = styled(" (best so far)", "green") if value > self.best else ""
        self.best = max(self.best, value)
        self.say(f"Validation results: {', '.join(map(str, values))}{mark}")
        if self.chief:
            checkpoints.save_best(self.folder, self.model, self.state, self.progress, value, config.keep_best)

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
        task, outputs = self.compiled.evaluator.first_task(self.state.weights, "val", steps)
        picture = draw_episode(*episode_rows(task, outputs, channels=config.image_shape[1]))
        self.writer.image("val", "episode", picture, self.iteration)

    def charts(self) -> None:
        """Draws what else is learned, when it is due; with --histograms the weights and the coming gradient, too."""
        if self.iteration % self.config.validation_interval:
            return
        if self.config.log and self.chief:
            self.writer.charts(self.model.charts(self.state.weights, self.iteration), self.iteration)
        if self.config.histograms:
            gradients = self.compiled.gradient(self.state.weights, tf.constant(self.iteration))
            self.writer.histograms(self.state.weights, gradients, self.iteration)

    def save(self, last: bool = False) -> None:
        """Writes a checkpoint when it is due, and behind the last iteration of this call."""
        regular = self.due(self.config.save_interval)
        if (last and (regular or self.iteration == self.start)) or (not last and not regular) or not self.chief:
            return
        self.writer.flush()
        checkpoints.save(self.folder, self.model, self.state, self.progress)
        self.on_save(self.iteration)

    def say(self, line: str) -> None:
        if self.chief:
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
