"""Colour on a terminal; the same words without it in a file, a pipe, or where NO_COLOR is set."""

import os

from rich.console import Console
from rich.text import Text


def styled(text: str, style: str) -> str:
    """A line in a style such as "bold" or "green", if what is printed is seen on a terminal."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal or "NO_COLOR" in os.environ:
        return text
    with console.capture() as captured:
        console.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()
