"""The names that `import maml` offers, and that it costs nothing until one is asked for."""

import subprocess
import sys

import pytest

import maml


@pytest.mark.parametrize("name", maml.__all__)
def test_a_public_name_is_what_it_says(name):
    assert getattr(maml, name).__name__ == name


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'MAMML'"):
        maml.MAMML  # noqa: B018


def test_importing_maml_loads_no_tensorflow():
    code = "import sys, maml, maml.config, maml.algorithms; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
