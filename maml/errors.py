"""The one exception that reaches a user as a single line instead of a traceback."""

import re

COLORS = re.compile(r"\x1b\[[0-9;]*m")  # of terminals, which Keras' messages hold


def one_line(error: BaseException, longest: int | None = None, named: bool = False) -> str:
    """What an error says, on one line of at most `longest` characters; `named` begins with the error's type."""
    name = type(error).__name__
    text = " ".join(str(error).split())
    return (f"{name}: {text}" if named and text else text or name)[:longest]


class UserError(Exception):
    """Something the user can mend: the message names it, what was found and what to do.

    `main.py` and `proc_images.py` print the message on stderr and exit with code 1.
    """

    def __str__(self) -> str:
        """The message on one line: without colors, and what is not printable, as in a file's name, is escaped."""
        plain = COLORS.sub("", super().__str__())
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in plain)
