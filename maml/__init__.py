"""Model-agnostic meta-learning in TensorFlow 2, faithful to the official code.

`load` gives what a run has learned, to adapt and predict with; `maml/learner.py` says how.
"""

from typing import TYPE_CHECKING, Any

from maml.errors import UserError

if TYPE_CHECKING:
    from maml.learner import load

__all__ = ["UserError", "load"]


def __getattr__(name: str) -> Any:
    """Imports the learner, and TensorFlow with it, when it is first asked for."""
    if name == "load":
        from maml.learner import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
