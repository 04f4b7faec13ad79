"""What `python -m tests.mutations` breaks is still there, and so are the tests that are to notice."""

import pytest

from tests.mutations import BREAKAGES, ROOT


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_a_breakage_fits_the_code(breakage):
    assert (ROOT / breakage.file).read_text(encoding="utf-8").count(breakage.old) == 1
    for name in breakage.tests:
        file, _, function = name.partition("::")
        text = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {function or 'test_'}" in text
    table = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    assert f"| {breakage.name} (`{breakage.file}`) | " in table
