"""What `make quick` leaves out, what is run first, and where tests do without XLA."""

import gc
import sys

import pytest

SLOW = {"test_central_differences", "test_golden", "test_modes", "test_deterministic", "test_gradient_check"}
# The longest: begun last, one of them would keep a process busy when the others are done.
FIRST = {"test_workers", "test_replicas", "test_kill", "test_algorithms", "test_benchmarks", "test_training"}
# About flags, folders, files and what is learned: XLA takes longer to compile a network than these take without.
INTERPRETED = {"test_first_hour", "test_runs", "test_main", "test_family", "test_summaries", "test_learner"}
INTERPRETED |= {"test_accumulate", "test_augmentation", "test_comparison", "test_network_access", "test_fuzz"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_sessionfinish():
    """Spares the end the search for cycles among all that was traced: pytest's own, and Python's."""
    gc.freeze()


@pytest.fixture
def interpreted(monkeypatch):
    """No network is compiled by XLA, in this process."""
    from maml.kernels import batch_norm
    from maml.models.official import Network

    monkeypatch.setattr(Network, "compiled", False)
    monkeypatch.setattr(batch_norm, "_fast", lambda *_: False)


@pytest.fixture
def eagerly():
    """No function is traced, in this process: that takes longer than a few calls of a tiny one."""
    from tests.tiny import untraced

    with untraced():
        yield


@pytest.fixture(autouse=True)
def not_deterministic_afterwards():
    """--deterministic is of one test, not of all that come behind it in its process."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.fixture(autouse=True)
def interpreted_in_some_files(request):
    if request.path.stem in INTERPRETED:
        request.getfixturevalue("interpreted")
