"""A function is the same while it computes the same: in another process, another line, with another comment."""

import functools
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from maml.own.code import code_of
from tests.command_line import ROOT


def power(outputs, y, p=2):
    """Mean of the differences' powers."""
    return tf.reduce_mean(abs(outputs - y) ** p)  # the loss


def called(*arguments, **flags):
    """Stands for maml.train."""
    return code_of(flags["loss"])


def bound(p):
    return lambda outputs, y: tf.reduce_mean(abs(outputs - y) ** p)


class Power:
    def __init__(self, p):
        self.p = p

    def __call__(self, outputs, y):
        return power(outputs, y, self.p)


def versions(tmp_path, *texts):
    """The codes of `loss` in modules with these texts."""
    codes = []
    for text in texts:
        path = tmp_path / "module.py"
        path.write_text(text)
        command = [sys.executable, "-c", "import module, maml.own.code as o; print(o.code_of(module.loss))"]
        paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        codes.append(subprocess.run(command, env=paths, capture_output=True, text=True, check=True).stdout)
    return codes


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    same = (
        "def loss(a, b):\n    return a - b\n",
        'import functools\n\ndef loss(a, b):\n    """New."""\n    # as before\n    return (a\n            - b)\n',
    )
    first, second = versions(tmp_path, *same)
    assert first == second
    assert versions(tmp_path, "def loss(a, b):\n    return a + b\n") != [first]


def test_of_a_lambdas_line_nothing_else_counts():
    first = called(1, loss=lambda o, y: tf.reduce_mean((o - y) ** 2), iterations=10)
    assert called(2, loss=lambda o, y: tf.reduce_mean((o - y) ** 2), iterations=20, more=lambda name: 3) == first
    assert (
        called(
            3,
            loss=lambda o, y: tf.reduce_mean((o - y) ** 2),
            iterations=30,
        )
        == first
    )
    assert called(1, loss=lambda o, y: tf.reduce_mean((o - y) ** 4), iterations=10) != first


@pytest.mark.parametrize(
    "make",
    [
        lambda p: functools.partial(power, p=p),
        lambda p: functools.partial(power, p=float(p)),
        bound,
        Power,
        lambda p: keras.losses.Huber(delta=p),
        lambda p: tf.function(bound(p)),
    ],
    ids=["partial", "partial, float", "closure", "object", "Keras", "tf.function"],
)
def test_what_is_bound_counts_and_addresses_do_not(make):
    assert code_of(make(2)) == code_of(make(2)) is not None
    assert code_of(make(2)) != code_of(make(3))
    assert "0x" not in code_of(make(2))


def test_other_functions_are_others():
    assert len({code_of(each) for each in (power, bound, bound(2), Power(2), keras.losses.Huber(2.0))}) == 5
    assert code_of(eval("lambda a: a")) is None  # typed at a prompt
