"""Runs `main.py`, in this process (fast) or in one of its own (as users do)."""

import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from maml import program

ROOT = Path(__file__).parent.parent


def run_here(*arguments: str) -> int:
    """Runs `main.py` in this process; returns the exit code."""
    if "datasource" not in flags.FLAGS:
        program.define_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        return program.main(program.parse(["main.py", *arguments]))
    except SystemExit as stop:  # a flag that cannot be parsed
        return int(stop.code or 0)


def run_process(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Runs `python main.py` in a process of its own, in the folder `cwd`."""
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)
