"""JAX, PyTorch and learn2learn compute our meta-gradient; a report without them is whole."""

import importlib

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.formulations import JAX_MAP, TORCH_LOOP
from benchmarks.settings import ALL
from maml.models.official import Weights
from tests.tiny import relative_error, tiny_episodes, tiny_model, tiny_weights

KINDS = [
    ("sinusoid", "None", 2),
    ("strided, mean head", "batch_norm", 1),
    ("pooled, flat head", "batch_norm", 2),
]


def in_jax(model, weights, episodes, vmap: bool) -> tuple[float, Weights]:
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    library = importlib.import_module("benchmarks.peer_jax")
    with jax.enable_x64(True):
        compute = jax.jit(lambda *given: library.meta_gradient(model.config, model.model, *given, vmap))
        return compute(weights, episodes)


def in_torch(model, weights, episodes, vmap: bool) -> tuple[float, Weights]:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    library = importlib.import_module("benchmarks.peer_torch")
    leaves, tasks = library.to_torch(model.config, model.model, weights, episodes)
    loss = library.meta_gradient(model.config, model.model, leaves, tasks, vmap)
    return float(loss), gradients_of(leaves)


def in_learn2learn(model, weights, episodes, vmap: bool) -> tuple[float, Weights]:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed: pip install learn2learn")
    to_torch = importlib.import_module("benchmarks.peer_torch").to_torch
    library = importlib.import_module("benchmarks.peer_learn2learn")
    leaves, tasks = to_torch(model.config, model.model, weights, episodes)
    module = library.Adapted(model.model, leaves)
    loss = library.meta_gradient(model.config, module, tasks)
    return float(loss), gradients_of(module.learned())


def gradients_of(leaves) -> Weights:
    """PyTorch's gradients, in TensorFlow's layout."""
    found = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return {name: g.transpose(2, 3, 1, 0) if g.ndim == 4 else g for name, g in found.items()}


@pytest.mark.parametrize(
    ("library", "vmap"),
    [(in_jax, True), (in_jax, False), (in_torch, True), (in_torch, False), (in_learn2learn, False)],
)
@pytest.mark.parametrize(("kind", "norm", "steps"), KINDS)
def test_peers_give_our_meta_loss_and_meta_gradient(kind, norm, steps, library, vmap):
    model = tiny_model(kind, norm, num_updates=steps)
    weights, episodes = tiny_weights(model, 1), tiny_episodes(model, 2)
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    their_loss, their_gradient = library(model, arrays, [tensor.numpy() for tensor in episodes], vmap)
    loss, gradient = model.gradient(weights, episodes, 0)
    np.testing.assert_allclose(their_loss, loss, rtol=1e-9)
    assert relative_error(their_gradient, gradient) < 1e-9


class Stub:
    """Stands in for a `Worker`: PyTorch's loop is too slow, JAX's map computes something else."""

    def __init__(self, formulation, config, limit=None):
        if formulation == TORCH_LOOP:
            raise TimeoutError("too slow")
        loss = 1.1 if formulation == JAX_MAP else 1.0
        self.first = {"loss": loss, "first_call_s": 1.0, "memory_peak": 1 << 20}
        self.updates, self.run = 1, lambda: None

    def close(self):
        """Nothing to end."""


def test_what_cannot_be_measured_stays_empty_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "Worker", Stub)
    monkeypatch.setattr(peers, "missing", lambda packages: set())
    monkeypatch.setattr(peers.importlib.metadata, "version", lambda package: "1")
    assert peers.main(["--settings", "toy", "--repetitions", "1", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "peers.md").read_text()
    cells = next(line for line in text.splitlines() if line.startswith(f"| {ALL['toy'].title}")).split("|")[2:-1]
    assert [bool(cell.strip()) for cell in cells] == [True, True, True, False, True, False, True]
    assert "too slow" in text
    assert "'JAX map' is 1.1" in text


def test_missing_libraries_are_named_and_ours_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "Worker", Stub)
    monkeypatch.setattr(peers, "missing", lambda packages: packages)
    assert peers.main(["--settings", "toy", "--repetitions", "1", "--output", str(tmp_path)]) == 0
    assert "torch is not installed: pip install torch" in capsys.readouterr().out
    text = (tmp_path / "peers.md").read_text()
    assert "- jax is not installed: pip install jax" in text
    cells = next(line for line in text.splitlines() if line.startswith(f"| {ALL['toy'].title}")).split("|")[2:-1]
    assert [bool(cell.strip()) for cell in cells] == [True, False, False, False, False, False, False]
