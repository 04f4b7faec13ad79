"""docs/quickstart.ipynb runs from its first cell to its last."""

import json

import numpy as np
import pytest

from tests.command_line import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_its_cells_run(monkeypatch):
    if not (ROOT / "pretrained" / "omniglot_5way_1shot").is_dir():
        pytest.skip("needs pretrained/omniglot_5way_1shot")
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert list(names["found"]) == list(names["SYMBOLS"]), "told apart"
    x, y, queries, values = names["task"](np.random.default_rng(3))
    learner = names["learner"]
    before, after = (np.mean((learner.adapt(x, y, num_updates=n).predict(queries) - values) ** 2) for n in (0, 3))
    assert after < 0.5 * before
