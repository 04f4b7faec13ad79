"""The one exception that reaches a user as a single line instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: the message names it, what was found and what to do.

    `main.py` and `proc_images.py` print the message on stderr and exit with code 1.
    """

    def __str__(self) -> str:
        """The message on one line: what is not printable in it, from a file's name for example, is escaped."""
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in super().__str__())
