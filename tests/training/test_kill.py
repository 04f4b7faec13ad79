"""A training that is killed and restarted ends like one that was left alone, to the bit."""

from tests import kill


def test_killed_trainings_end_like_one_left_alone(tmp_path):
    """One kill of the sinusoid; `python -m tests.kill` does many of every data source."""
    flags = ("--pretrain_iterations=0", "--val_tasks=0", "--test_num_updates=1")  # starts faster
    outcome = kill.kill_and_resume("sinusoid", kills=1, seed=2, folder=tmp_path, flags=flags)
    assert len(outcome.kills) == 1
    assert outcome.kills[-1] > 0
    assert outcome.lines == 3
