"""The training loop: resuming exactly, pre-training first, what is printed, kept and summarized."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.data_generator import WHOLE, DataGenerator
from maml.errors import UserError
from maml.maml import MAML
from maml.training import checkpoints
from maml.training import loop as training
from maml.training.diagnosis import all_finite
from maml.training.evaluation import Evaluator
from maml.training.updates import update
from tests.tiny import Interpreted

SMALL = {"norm": "None", "meta_batch_size": 4, "summary_interval": 10, "save_interval": 25, "val_interval": 30}
SMALL |= {"val_tasks": 20, "metatrain_iterations": 60, "test_num_updates": 2}
# Flags that no traced function depends on: tracing takes longer than these trainings, so it is done once.
UNTRACED = {"metatrain_iterations", "save_interval", "val_interval", "val_tasks", "log"}
TRACED: dict[str, tuple] = {}


def train(folder, compiled: bool = False, **flags) -> training.Trained:
    """Trains in `folder`; without XLA by default, whose compilation takes longer than these trainings."""
    config = Config.from_flags(SMALL | flags)
    folder.mkdir(exist_ok=True)
    traced = {name: value for name, value in flags.items() if name not in UNTRACED}
    key = str((compiled, DataGenerator, Spoiled.at, Spoiled.add, traced))
    if key not in TRACED:
        model = MAML(config) if compiled else MAML(config, Interpreted.from_config(config))
        data = DataGenerator(config)
        TRACED[key] = (model, data, training.Compiled.of(config, model, data))
    model, data, functions = TRACED[key]
    return training.train(config, model.of(config), data, folder, functions)


def scalars(folder) -> dict[str, dict[int, float]]:
    """TensorBoard scalars of train/ and val/ by tag and step."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("*/events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                tag = f"{path.parent.name}/{value.tag}"
                found.setdefault(tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def identical(first, second) -> bool:
    pairs = zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("flags", [{}, {"pretrain_iterations": 20, "metatrain_iterations": 40}])
def test_a_training_in_three_parts_ends_like_one_in_one(tmp_path, flags, capsys, monkeypatch):
    """Weights, both Adam states, validation and summaries are the same to the bit."""
    monkeypatch.setattr(Config, "print_interval", 20)
    whole = train(tmp_path / "whole", **flags)
    lines = capsys.readouterr().out.splitlines()
    pretrain = flags.get("pretrain_iterations", 0)
    for stop in (25, 40, 60):
        part = train(tmp_path / "parts", **flags | {"metatrain_iterations": stop - pretrain})
    assert part.finished
    assert identical(whole.state, part.state)
    assert whole.progress.best == part.progress.best > -np.inf
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "parts")
    parts = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Resuming from")]
    assert parts == lines


def test_pretraining_comes_first_and_has_its_own_adam(tmp_path):
    trained = train(tmp_path, pretrain_iterations=20, metatrain_iterations=40)
    assert (trained.state.pretrain.step, trained.state.metatrain.step) == (20, 40)
    only = train(tmp_path / "only", baseline="oracle")
    assert (only.state.pretrain.step, only.state.metatrain.step) == (60, 0)


def test_a_run_is_the_same_however_it_is_watched(tmp_path):
    """Validation, summaries, saving and logging do not touch the training."""
    plain = train(tmp_path / "plain")
    watched = train(tmp_path / "watched", val_interval=7, summary_interval=9, save_interval=11, val_tasks=40, log=False)
    assert identical(plain.state, watched.state)
    assert not identical(plain.state, train(tmp_path / "other", seed=1).state)


def test_iterations_are_the_single_updates_one_after_another(tmp_path):
    config = Config.from_flags(SMALL | {"metatrain_iterations": 3})
    model, data = MAML(config), DataGenerator(config)
    state = model.init_state()
    for iteration in range(3):
        state, _ = update(model, state, data.episodes("train", iteration, config.meta_batch_size), iteration)
    trained = train(tmp_path, compiled=True, metatrain_iterations=3)
    for expected, found in zip(tf.nest.flatten(state), tf.nest.flatten(trained.state), strict=True):
        np.testing.assert_allclose(expected, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
def test_summaries_measure_the_tasks_of_the_coming_update(tmp_path, monkeypatch, compiled):
    """Also after an update that was skipped, the 20th; they come from inside the loop, here they are made anew."""
    monkeypatch.setattr(Spoiled, "at", (19,))
    monkeypatch.setattr("tests.training.test_training.DataGenerator", Spoiled)
    flags = {"save_interval": 10, "metatrain_iterations": 40, "on_nan": "skip"}
    assert train(tmp_path, compiled, **flags).progress.skipped == 1
    config, found = Config.from_flags(SMALL | flags), scalars(tmp_path)
    model = MAML(config)
    evaluator = Evaluator(model, DataGenerator(config))
    for checkpoint in checkpoints.list_checkpoints(tmp_path):
        state, progress = checkpoints.restore(checkpoint, model)
        assert state.metatrain.step == progress.iteration - progress.skipped
        losses = evaluator.batch(state.weights, "train", checkpoint.iteration, 4, config.evaluation_updates)["loss"]
        shown = [found["train/loss/Pre-update"][checkpoint.iteration]]
        shown += [found[f"train/loss/Post-update, step {step}"][checkpoint.iteration] for step in (1, 2)]
        np.testing.assert_allclose(shown, losses.mean(0), rtol=1e-5)
    assert set(found["train/loss/Pre-update"]) == {0, 10, 20, 30, 40}


def test_more_summaries_than_fit_a_call_are_all_there(tmp_path):
    train(tmp_path, summary_interval=1, val_tasks=0)
    assert set(scalars(tmp_path)["train/loss/Pre-update"]) == set(range(61))


def test_summaries_of_every_step_have_the_same_tags_in_training_and_validation(tmp_path):
    """TensorBoard draws curves of one tag in one chart."""
    train(tmp_path, num_updates=2, test_num_updates=3)
    found = scalars(tmp_path)
    names = {"loss/Pre-update", "loss/Post-update"} | {f"loss/Post-update, step {step}" for step in (1, 2, 3)}
    assert set(found) == {f"{split}/{name}" for split in ("train", "val") for name in names}
    assert found["val/loss/Post-update"] == found["val/loss/Post-update, step 2"]
    assert set(found["train/loss/Pre-update"]) == set(range(0, 70, 10))
    assert set(found["val/loss/Pre-update"]) == {30, 60}


def test_printed_lines_and_kept_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Config, "print_interval", 20)
    trained = train(tmp_path)
    losses = scalars(tmp_path)
    pre, post = losses["train/loss/Pre-update"], losses["train/loss/Post-update, step 1"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Iteration")]
    assert [line.split(":")[0] for line in lines] == ["Iteration 20", "Iteration 40", "Iteration 60"]
    means = [float(number) for number in lines[1].split(": ")[1].split(", ")]
    np.testing.assert_allclose(means, [np.mean([pre[30], pre[40]]), np.mean([post[30], post[40]])], rtol=1e-6)
    kept = [checkpoint.prefix.name for checkpoint in checkpoints.list_checkpoints(tmp_path)]
    assert kept == ["model25", "model50", "model60"]
    validation = losses["val/loss/Post-update, step 1"]
    [best] = checkpoints.list_checkpoints(tmp_path, "best")
    assert best.iteration == min(validation, key=lambda iteration: validation[iteration])
    assert trained.progress.best == -min(validation.values())


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tmp_path):
    whole, handler = train(tmp_path / "whole"), signal.getsignal(signal.SIGINT)
    config = Config.from_flags(SMALL)
    model, data = MAML(config, Interpreted.from_config(config)), DataGenerator(config)
    compiled = training.Compiled.of(config, model, data)

    def interrupted(state, first, count):
        if first + count > 33:
            os.kill(os.getpid(), signal.SIGINT)
        return compiled.update(state, first, count)

    (tmp_path / "stopped").mkdir()
    stopped = training.train(config, model, data, tmp_path / "stopped", compiled._replace(update=interrupted))
    assert not stopped.finished
    assert 33 < stopped.progress.iteration < 60
    assert checkpoints.list_checkpoints(tmp_path / "stopped")[-1].iteration == stopped.progress.iteration
    assert identical(whole.state, train(tmp_path / "stopped").state)
    assert signal.getsignal(signal.SIGINT) is handler


class Spoiled(DataGenerator):
    """Training tasks of some iterations with `add` added to their query labels."""

    at: tuple[int, ...] = (37, 52)
    add: float | list = float("nan")

    def episodes(self, split, index, meta_batch_size, part=WHOLE):
        episodes = super().episodes(split, index, meta_batch_size, part)
        spoiled = tf.reduce_any(tf.equal(index, self.at)) & (split == "train")
        return episodes._replace(labelb=episodes.labelb + tf.where(spoiled, self.add, 0.0))


def finite_checkpoints(folder) -> list[int]:
    """The iterations of the checkpoints, all of whose numbers are finite."""
    found = checkpoints.list_checkpoints(folder)
    for checkpoint in found:
        state, _ = checkpoints.restore(checkpoint, MAML(Config(norm="None")))
        assert all_finite(state)
    return [checkpoint.iteration for checkpoint in found]


@pytest.mark.parametrize(
    ("add", "culprit"),
    [
        (float("nan"), "query loss after inner step 1"),
        (float("inf"), "query loss after inner step 1"),
        (1.2e19, "squared gradient of b3"),  # the loss, 1.4e38, and the gradient, 2.4e19, are finite
        ([[1.4e19], [-1.4e19]], "query loss after inner step 1"),  # the gradients of the two points cancel
    ],
)
def test_what_is_not_finite_stops_the_run_is_named_and_never_saved(tmp_path, monkeypatch, add, culprit):
    monkeypatch.setattr(Spoiled, "add", add)
    monkeypatch.setattr("tests.training.test_training.DataGenerator", Spoiled)
    with pytest.raises(UserError) as error:
        train(tmp_path, save_interval=1, summary_interval=1000, meta_batch_size=1, update_batch_size=2)
    assert str(error.value).startswith(f"iteration 37: the {culprit} is not finite; try")
    assert "since iteration 37 (" in str(error.value)
    assert finite_checkpoints(tmp_path) == list(range(28, 38))


def test_without_a_checkpoint_that_falls_between_the_iteration_is_still_found(tmp_path):
    """With a meta-learning rate this large the weights overflow within a few updates."""
    train(tmp_path)
    with pytest.raises(UserError, match=r"iteration 6\d: the .* is not finite.* since iteration 60 "):
        train(tmp_path, meta_lr=1e30, metatrain_iterations=200)
    assert finite_checkpoints(tmp_path)[-1] == 60


def test_skipped_updates_leave_no_trace_but_their_count(tmp_path, monkeypatch, capsys):
    """The state stays as it was before the update; the count is printed, saved and taken up again."""
    monkeypatch.setattr(Config, "print_interval", 20)
    with monkeypatch.context() as patch:
        patch.setattr("tests.training.test_training.DataGenerator", Spoiled)
        whole = train(tmp_path / "whole", on_nan="skip")
        lines = capsys.readouterr().out.splitlines()
        for stop in (45, 60):
            parts = train(tmp_path / "parts", on_nan="skip", metatrain_iterations=stop)
    assert "Skipped so far: 1 updates that were not finite" in lines
    assert "Skipped so far: 2 updates that were not finite" in lines
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Resuming from")] == lines
    assert whole.progress.skipped == parts.progress.skipped == 2
    assert whole.state.metatrain.step == 58
    assert identical(whole.state, parts.state)

    config = Config.from_flags(SMALL)
    model, data = MAML(config, Interpreted.from_config(config)), DataGenerator(config)
    update, state = training.make_update(model, data), model.init_state()
    for first, count in ((0, 37), (38, 14), (53, 7)):
        state = update(state, tf.constant(first), tf.constant(count))[0]
    assert identical(whole.state, state)


def test_skipping_changes_nothing_where_all_is_finite(tmp_path):
    assert identical(train(tmp_path / "stop").state, train(tmp_path / "skip", on_nan="skip").state)
