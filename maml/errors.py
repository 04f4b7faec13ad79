"""The one exception that reaches a user as a single line instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: the message names it, what was found and what to do.

    `main.py` and `proc_images.py` print the message on stderr and exit with code 1.
    """
