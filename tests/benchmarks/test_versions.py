"""The comparison of two versions, of which one is this one's copy."""

import shutil

import pytest

from benchmarks import versions


def test_a_row_compares_a_copy_that_is_run_in_its_own_folder(tmp_path):
    for name in ("benchmarks", "maml"):
        shutil.copytree(versions.HERE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    settings = tmp_path / "benchmarks" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text + "\nprint('run', file=open('was_run', 'a'))\n", encoding="utf-8")
    title, old, new, ratio, first, memory = versions.compare("toy", tmp_path, 5, 0)
    assert title == versions.ALL["toy"].title and (tmp_path / "was_run").read_text().count("run") >= 2
    assert float(ratio) > 0 and all("(" in spread for spread in (old, new))
    assert first.count("→") == memory.count("→") == 1


def test_a_folder_without_the_project_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["versions", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no version of this project"):
        versions.main()
