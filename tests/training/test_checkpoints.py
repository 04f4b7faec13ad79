"""Checkpoints: what they hold, which ones stay, the official names, and damage."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from maml.algorithms.adapting import TrainState
from maml.config import Config
from maml.errors import UserError
from maml.maml import MAML
from maml.training import checkpoints
from maml.training.checkpoints import DATA_SUFFIX, Progress
from maml.training.loop import restore_latest


def model_of(**flags) -> MAML:
    return MAML(Config.from_flags(flags))


def state_of(seed: int = 0, **flags) -> TrainState:
    """A state in which every tensor differs."""
    model = model_of(**flags)
    rng = np.random.default_rng(seed)
    return tf.nest.map_structure(
        lambda tensor: (
            tf.cast(rng.integers(1, 99, tensor.shape), tensor.dtype) / 7
            if tensor.dtype.is_floating
            else tensor + int(rng.integers(1, 99))
        ),
        model.init_state(),
    )


def equal(first: TrainState, second: TrainState) -> bool:
    pairs = zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("flags", [{}, {"datasource": "omniglot", "norm": "layer_norm"}, {"dtype": "float64"}])
def test_everything_comes_back(tmp_path, flags):
    state, progress = state_of(3, **flags), Progress(70, np.array([[1.5, 2.5], [3, 4]]), 0.25)
    checkpoints.save(tmp_path, model_of(**flags), state, progress)
    [checkpoint] = checkpoints.list_checkpoints(tmp_path)
    restored, again = checkpoints.restore(checkpoint, model_of(**flags))
    assert equal(restored, state)
    assert not equal(restored, state_of(5, **flags))
    assert again.iteration == 70
    assert again.best == 0.25
    np.testing.assert_array_equal(again.pending, progress.pending)


def test_a_setting_without_pretraining_keeps_one_adam(tmp_path):
    """Weights, m and v; checkpoints of before, which held both Adams, still load."""
    with_both = {"pretrain_iterations": 3}
    assert len(adam_tensors(tmp_path / "both", **with_both)) == 2 * len(adam_tensors(tmp_path / "one"))
    both = state_of(3, **with_both)
    checkpoints.save(tmp_path, model_of(**with_both), both, Progress(7, np.zeros([0, 2]), 0.5))
    restored, _ = checkpoints.restore(checkpoints.list_checkpoints(tmp_path)[0], model_of())
    assert equal((restored.weights, restored.metatrain), (both.weights, both.metatrain))


def adam_tensors(folder: Path, **flags) -> list[str]:
    """The names of Adam's running means in a checkpoint of a setting."""
    folder.mkdir()
    prefix = checkpoints.save(folder, model_of(**flags), state_of(**flags), Progress(1, np.zeros([0, 2]), 0.0))
    names = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
    return [name for name in names if re.search("/[mv]/", name)]


def test_the_last_ten_stay_and_the_index_names_them(tmp_path):
    state = state_of()
    for iteration in range(1000, 13000, 1000):
        checkpoints.save(tmp_path, model_of(), state, Progress(iteration, np.zeros([0, 2]), 0.0))
    checkpoints.save(tmp_path, model_of(), state, Progress(500, np.zeros([0, 2]), 0.0), stem="best", keep=1)
    names = [checkpoint.prefix.name for checkpoint in checkpoints.list_checkpoints(tmp_path)]
    assert names == [f"model{iteration}" for iteration in range(3000, 13000, 1000)]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model12000")
    left = {path.name for path in tmp_path.iterdir()}
    whole = {name + suffix for name in [*names, "best500"] for suffix in (".index", DATA_SUFFIX)}
    assert left == whole | {"checkpoint"}


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_normalizations_of_dense_networks_by_our_earlier_names(tmp_path, norm):
    """Checkpoints once called them model/0, model/1, model/2; the official code, and ours since, skips 1."""
    flags = {"datasource": "omniglot", "conv": False, "norm": norm}
    model, state = model_of(**flags), state_of(4, **flags)
    checkpoints.save(tmp_path, model, state, Progress(7, np.zeros([0, 2]), 0.5))
    [checkpoint] = checkpoints.list_checkpoints(tmp_path)
    reader = tf.train.load_checkpoint(str(checkpoint.prefix))
    official = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert "model/2/beta" in official and "model/1/beta" not in official
    earlier = {re.sub(r"model/([234])/", lambda m: f"model/{int(m[1]) - 1}/", n): v for n, v in official.items()}
    checkpoints.remove(checkpoint)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model7"),
        tensor_names=list(earlier),
        shape_and_slices=[""] * len(earlier),
        tensors=list(earlier.values()),
    )
    restored, progress = checkpoints.restore(checkpoint, model)
    assert equal(restored, state)
    assert progress.iteration == 7


def test_a_checkpoint_without_our_extras_starts_adam_anew(tmp_path):
    """What the official code writes: trainable variables only, and no `checkpoint` file."""
    state = state_of(1)
    names = model_of().checkpoint_names(state.weights)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model69999"),
        tensor_names=list(names.values()),
        shape_and_slices=[""] * len(names),
        tensors=[state.weights[name] for name in names],
    )
    [checkpoint] = checkpoints.list_checkpoints(tmp_path)
    restored, progress = checkpoints.restore(checkpoint, model_of())
    assert all(np.array_equal(restored.weights[name], state.weights[name]) for name in names)
    assert progress.iteration == 69999
    for adam in (restored.pretrain, restored.metatrain):
        assert adam.step == 0
        assert all((value == 0).numpy().all() for value in (adam.m | adam.v).values())


def test_another_network_is_refused_with_the_list_of_differences(tmp_path):
    checkpoints.save(
        tmp_path, model_of(datasource="omniglot"), state_of(datasource="omniglot"), Progress(1, np.zeros([0, 2]), 0.0)
    )
    [checkpoint] = checkpoints.list_checkpoints(tmp_path)
    with pytest.raises(UserError) as error:
        checkpoints.restore(checkpoint, model_of(datasource="omniglot", norm="layer_norm", num_classes=3))
    message = str(error.value)
    assert "\n" not in message
    assert "model/0/gamma is missing" in message
    assert "model/w5 is [64, 5], expected [64, 3]" in message


@pytest.mark.parametrize("suffix", [".index", DATA_SUFFIX])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, suffix, damage):
    older, newer = state_of(1), state_of(2)
    checkpoints.save(tmp_path, model_of(), older, Progress(10, np.zeros([0, 2]), 0.0))
    checkpoints.save(tmp_path, model_of(), newer, Progress(20, np.zeros([0, 2]), 0.0))
    path = tmp_path / f"model20{suffix}"
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:middle], "flipped": flipped}[damage])
    restored = restore_latest(tmp_path, model_of())
    assert restored is not None
    assert equal(restored[0], older)
    assert restored[1].iteration == 10
    if not (damage == "gone" and suffix == ".index"):  # without its index there is no checkpoint
        assert "model20" in capsys.readouterr().err


def test_all_damaged_is_one_line(tmp_path):
    checkpoints.save(tmp_path, model_of(), state_of(), Progress(10, np.zeros([0, 2]), 0.0))
    (tmp_path / f"model10{DATA_SUFFIX}").write_bytes(b"")
    with pytest.raises(UserError, match="model10"):
        restore_latest(tmp_path, model_of())


def test_choose(tmp_path):
    for iteration in (10, 20):
        checkpoints.save(tmp_path, model_of(), state_of(), Progress(iteration, np.zeros([0, 2]), 0.0))
    checkpoints.save(tmp_path, model_of(), state_of(), Progress(10, np.zeros([0, 2]), 0.0), stem="best", keep=1)
    assert checkpoints.choose(tmp_path, "latest", -1).prefix.name == "model20"
    assert checkpoints.choose(tmp_path, "latest", 10).prefix.name == "model10"
    assert checkpoints.choose(tmp_path, "best", -1).prefix.name == "best10"
    with pytest.raises(UserError, match="there are: 10, 20"):
        checkpoints.choose(tmp_path, "latest", 30)
