"""A training that is killed and restarted ends like one that was left alone, to the bit."""

from tests import kill


def test_killed_trainings_end_like_one_left_alone(tmp_path):
    """A few kills of the sinusoid; `python -m tests.kill` does many of every data source."""
    outcome = kill.kill_and_resume("sinusoid", kills=2, seed=1, folder=tmp_path)
    assert len(outcome.kills) == 2
    assert outcome.kills[-1] > 0
    assert outcome.lines == 8
