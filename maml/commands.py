"""Commands as they are printed: pasted into a terminal, in the folder where the user is, they run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def quoted(arguments: list[str]) -> str:
    """Arguments as one line for the system's shell."""
    return subprocess.list2cmdline(arguments) if sys.platform == "win32" else shlex.join(arguments)


def python() -> str:
    """What starts this Python: `python` where that is it."""
    found = shutil.which("python")
    return "python" if found and os.path.abspath(found) == os.path.abspath(sys.executable) else sys.executable


def program(name: str, *arguments: str) -> str:
    """The command of `main.py` or `proc_images.py`, or of the installed `maml`."""
    script = ROOT / name
    if not script.is_file():  # installed, without the scripts beside it
        return quoted(["maml", *arguments])
    return quoted([python(), name if Path.cwd() == ROOT else str(script), *arguments])


def module(name: str, *arguments: str) -> str:
    """The command of a module of this package, such as `maml.tasks.omniglot`."""
    command = quoted([python(), "-m", name, *arguments])
    found_anywhere = ROOT.name in ("site-packages", "dist-packages") or Path.cwd() == ROOT
    return command if found_anywhere else f"cd {quoted([str(ROOT)])} && {command}"
