"""Colour is for terminals alone."""

import os
import subprocess
import sys

import pytest

from maml.terminal import styled
from tests.command_line import ROOT

SHOW = "from maml.terminal import styled; print(styled('± done', 'bold green') + '.')"


def test_in_a_file_there_is_none():
    assert styled("± done", "bold green") == "± done"


def shown(**environment) -> str:
    """What a terminal gets."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    names = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment
    subprocess.run([sys.executable, "-c", SHOW], stdout=theirs, env=os.environ | names, check=True)
    os.close(theirs)
    return os.read(ours, 1000).decode().strip()


def test_on_a_terminal_there_is():
    assert shown() == "\x1b[1;32m± done\x1b[0m."


def test_a_terminal_that_wants_none_gets_none():
    assert shown(NO_COLOR="1") == shown(TERM="dumb") == "± done."
