"""Which tests `make quick` leaves out: those of files that take more than a few seconds."""

import pytest

SLOW = {"test_central_differences", "test_golden", "test_modes", "test_deterministic", "test_gradient_check"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
