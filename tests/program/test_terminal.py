"""Color is for terminals alone."""

import os
import subprocess
import sys

import pytest

from maml.errors import one_line
from maml.terminal import styled, table
from tests.command_line import ROOT

SHOW = "from maml.terminal import styled; print(styled('± done', 'bold green') + '.')"
TABLE = (
    "from maml.terminal import table; print(table(['', 'accuracy'], [['before', '20 %'], ['after', '48.7 %']], {1}))"
)


def test_in_a_file_there_is_none():
    assert styled("± done", "bold green") == "± done"


def shown(program=SHOW, **environment) -> str:
    """What a terminal gets."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    names = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment
    subprocess.run([sys.executable, "-c", program], stdout=theirs, env=os.environ | names, check=True)
    os.close(theirs)
    return os.read(ours, 1000).decode().strip("\r\n")


def test_on_a_terminal_there_is():
    assert shown() == "\x1b[1;32m± done\x1b[0m."


def test_a_terminal_that_wants_none_gets_none():
    assert shown(NO_COLOR="1") == shown(TERM="dumb") == "± done."


def test_a_table_is_aligned_and_on_a_terminal_a_librarys():
    plain = shown(TABLE, TERM="dumb").splitlines()
    assert plain == ["        accuracy", "before      20 %", "after     48.7 %"]
    assert table(["a"], [["±"]]) == "a\n±"
    found = shown(TABLE, PYTHONIOENCODING="utf-8", COLUMNS="40")
    assert "───" in found and "\x1b[1m" in found.splitlines()[-1] and "48.7 %" in found
    assert len(shown(TABLE, COLUMNS="5").splitlines()) == len(found.splitlines()), "no line is cut or wrapped"


def test_an_errors_reason_is_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError("two\nlines"), 5) == "two l"
    assert one_line(KeyError("a"), named=True) == "KeyError: 'a'"
    assert one_line(EOFError()) == one_line(EOFError(), named=True) == "EOFError"
