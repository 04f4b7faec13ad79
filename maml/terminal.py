"""Color and tables on a terminal; the same words without them in a file, a pipe, or where NO_COLOR is set."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maml.errors import UserError

WIDEST = 1000  # characters of a table's line


def styled(text: str, style: str) -> str:
    """A line in a style such as "bold" or "green", if what is printed is seen on a terminal."""
    console = _terminal()
    if not console:
        return text
    with console.capture() as captured:
        console.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: Collection[int] = ()) -> str:
    """Rows of cells under a header, the first column on the left and the others on the right; plain or for a terminal.

    Args:
        marked: the rows that stand out on a terminal.
    """
    console = _terminal()
    if not console:
        return aligned(header, rows)
    console.width = max(console.width, WIDEST)  # a column that does not fit would be left out
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, title in enumerate(header):
        shown.add_column(Text(title), justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        shown.add_row(*map(Text, row), style="bold" if number in marked else "")
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in plain lines, all of one length."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if number else f"{cell:<{width}}" for number, (cell, width) in enumerate(cells))
        for cells in (tuple(zip(line, widths, strict=True)) for line in lines)
    )


def _terminal() -> Console | None:
    """The terminal that is printed to, if it is one that shows more than plain lines."""
    console = Console()
    plain = not console.is_terminal or console.is_dumb_terminal or "NO_COLOR" in os.environ
    return None if plain else console


@contextlib.contextmanager
def quiet_stderr():
    """Holds back what C++ prints on stderr, and shows it only if the block fails for a reason unknown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
