"""Work on many images by processes, one a core.

Pillow holds the interpreter's lock for most of the time that a small image takes, so threads do not help. A process
gets pickled work on its standard input, answers on its standard output, and ends when that input does: nothing is left
behind when the program is killed. (Workers of `concurrent.futures` and joblib would be left for a while or for ever,
and `multiprocessing` runs an unguarded script of a user once more in each.)
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from typing import IO, TypeVar

from maml.errors import UserError
from maml.machine import cores

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")

# A terminal's Ctrl-C is for the program that asks.
_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from maml.tasks.decoding import serve
serve()
"""


def map_in_processes(work: Callable[[Piece], Answer], pieces: Sequence[Piece]) -> Generator[Answer, None, None]:
    """work(piece) of all pieces, in their order; `work` and the pieces are pickled.

    Raises:
        UserError: a process ended before its work was done.
    """
    command = [sys.executable, "-c", _START.format(path=sys.path)]
    number = min(cores(), len(pieces))
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(number)]
    try:
        for child, piece in zip(children, pieces, strict=False):
            _put(child.stdin, work)
            _put(child.stdin, piece)
        for place in range(len(pieces)):
            child = children[place % number]
            assert child.stdout
            answer = pickle.load(child.stdout)
            if place + number < len(pieces):
                _put(child.stdin, pieces[place + number])
            yield answer
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"a process that decodes images ended with code {child.wait()}; if the memory was full, free some and run "
            "the same command again"
        ) from error
    finally:
        for child in children:
            child.kill()
            child.communicate()


def serve() -> None:
    """Answers until standard input ends."""
    receive, send = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    try:
        work = pickle.load(receive)
        while True:
            _put(send, work(pickle.load(receive)))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without a word; the one that asked has gone


def _put(pipe: IO[bytes] | None, value: object) -> None:
    assert pipe
    pickle.dump(value, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()
