"""What the page computes, and the page itself where Gradio is installed."""

import numpy as np
import pytest

import maml
from maml.demo import page
from maml.demo.classify import curve, probabilities
from maml.errors import UserError
from maml.learner import Learner
from tests.algorithms.test_algorithms import toy
from tests.command_line import run_here
from tests.image_fixtures import write_class_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_class_folders(root, {"train": 8, "val": 5, "test": 5}, 6, size=16, channels=1)
    return root


def learner_of(algorithm, folder) -> Learner:
    config, _ = toy(algorithm, folder, train=False, **({} if algorithm == "protonet" else {"bn_mode": "support"}))
    model = maml.algorithms.build(config)
    return Learner(config, model, model.init_state().weights, folder)


@pytest.mark.parametrize(("algorithm", "rows"), [("maml", 3), ("protonet", 1)])
def test_probabilities_before_and_after_every_step(algorithm, rows, folder):
    learner = learner_of(algorithm, folder)
    images = np.random.default_rng(0).random([6, 16, 16, 1], np.float32)
    labels = [0, 1, 2, 0, 1, 2]
    found = probabilities(learner, images, labels, images[0], 2)
    assert found.shape == (rows, 3)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    expected = learner.adapt(images, labels, num_updates=2 if rows > 1 else None).predict_proba(images[:1])[0]
    np.testing.assert_allclose(found[-1], expected, rtol=1e-4, atol=1e-6)
    fewer = probabilities(learner, images[[0, 1, 3, 4]], [0, 1, 0, 1], images[0], 2)
    assert fewer.shape == (rows, 2), "an output that no symbol has is left out"
    np.testing.assert_allclose(fewer.sum(1), 1, rtol=1e-5)


def test_too_few_and_too_many_symbols_are_said(folder):
    learner, images = learner_of("maml", folder), np.zeros([4, 16, 16, 1], np.float32)
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):
        with pytest.raises(UserError, match="this network tells 2 to 3 apart"):
            probabilities(learner, images, labels, images[0], 1)


def test_clicks_are_where_they_are_on_the_axes():
    from matplotlib.figure import Figure

    axes = Figure((page.WIDTH / 100, page.HEIGHT / 100), dpi=100).add_axes(
        (page.LEFT, page.BOTTOM, page.RIGHT - page.LEFT, page.TOP - page.BOTTOM)
    )
    axes.set(xlim=page.X, ylim=page.Y)
    for point in ((-5, 0), (3.2, -4.5), (0, 5.9)):
        across, up = axes.transData.transform(point)
        assert page._place((across, page.HEIGHT - up)) == pytest.approx(point, abs=0.02)


def test_the_table_escapes_names_and_shows_the_answer():
    text = page.table_of(np.array([[0.5, 0.5], [0.1, 0.9]]), ["<b>", "cat"])
    assert "&lt;b&gt;" in text and "<b id='answer'>cat</b>" in text and text.count("<tr>") == 3


def test_without_gradio_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert run_here("--demo") == 1
    found = capsys.readouterr().err
    assert "pip install -r requirements-demo.txt" in found and found.count("\n") == 1


def test_a_curve_for_every_number_of_steps():
    from maml.config import Config

    config = Config.from_flags({"norm": "None"})
    model = maml.MAML(config)
    learner = Learner(config, model, model.init_state().weights, None)
    at = np.linspace(-5, 5, 7)
    before, after = curve(learner, [0.0, 1.0], [1.0, 2.0], (0, 3), at)
    assert before.shape == after.shape == (7,) and np.abs(before - after).max() > 1e-3
