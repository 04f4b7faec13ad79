"""Training and testing open no socket."""

import os
import sys

import pytest

from tests.command_line import run_here

SEEN: list[str] = []
WATCHING = [False]


def _hook(event: str, arguments: tuple, watching: list = WATCHING, seen: list = SEEN) -> None:
    """Every socket, look-up of a name and connection that Python code asks for.

    Names of the module are gone when the interpreter ends, and hooks are not: hence the defaults.
    """
    if watching[0] and event.startswith("socket."):
        seen.append(f"{event} {arguments}")


@pytest.fixture
def watched():
    """What opened a socket during the test; hooks cannot be taken away, so it is switched off."""
    if not SEEN and not WATCHING[0]:
        sys.addaudithook(_hook)
    SEEN.clear()
    WATCHING[0] = True
    yield SEEN
    WATCHING[0] = False


def open_sockets() -> set[str]:
    """The sockets of this process, those of its libraries in C++ as well."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_training_and_testing_open_no_socket(tmp_path, monkeypatch, watched):
    monkeypatch.chdir(tmp_path)
    before = open_sockets()
    assert run_here("--norm=None", "--metatrain_iterations=5", "--val_tasks=20", "--val_interval=5") == 0
    assert run_here("--train=False", "--test_set=True", "--test_tasks=20") == 0
    assert watched == []
    assert open_sockets() == before


def test_a_socket_would_be_seen(watched):
    import socket

    with socket.socket():
        assert len(open_sockets()) > 0
    assert watched
