"""Every test here takes the small miniImageNet for the official one."""

import pytest

from maml.tasks.prepare import lists
from tests.tasks.prepare.fixtures import PER_CLASS, SMALL


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """The small data set is the official one, and programs run in an empty folder."""
    monkeypatch.setattr(lists, "CLASSES", SMALL)
    monkeypatch.setattr(lists, "PER_CLASS", PER_CLASS)
    monkeypatch.chdir(tmp_path)
