"""The speed of the family: every member is timed on the same tasks."""

from benchmarks import family


def test_a_row_has_a_ratio_for_every_member(monkeypatch):
    monkeypatch.setattr(family, "FAMILY", {"ANIL": family.FAMILY["ANIL"]})
    monkeypatch.setattr(family, "COLUMNS", ["ANIL", family.FLOOR])
    title, maml, *ratios = family.compare("toy", 1, 0)
    assert title == family.ALL["toy"].title and "(" in maml
    assert len(ratios) == 2 and all(float(ratio) > 0 for ratio in ratios)
