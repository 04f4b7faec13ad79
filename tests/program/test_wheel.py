"""The package installs, and only the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_wheel_holds_the_package_alone_and_works_from_an_empty_folder(tmp_path):
    pytest.importorskip("setuptools", reason="building a wheel without the network needs setuptools here")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("maml-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(tmp_path / "site")
    assert {top for top in tops if not top.endswith(".dist-info")} == {"maml"}
    (tmp_path / "empty").mkdir()
    code = (
        "import maml, sys, maml.tasks.prepare.miniimagenet; "
        "assert 'tensorflow' not in sys.modules; print(maml.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.startswith(str(tmp_path / "site")), run.stderr
