"""Downloading Omniglot from a server on this machine that can fail in every way."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maml.errors import UserError
from maml.tasks import omniglot
from tests.image_fixtures import omniglot_files, write_archive, write_omniglot_archives

ROOT = Path(__file__).parents[2]
BACKGROUND, EVALUATION = omniglot.MD5
CONTENT = {BACKGROUND: bytes(range(256)) * 2000, EVALUATION: b"evaluation" * 5000}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`.

    ranges: whether it knows Range.
    shifted: whether it answers Range with another piece.
    cut: bytes after which it hangs up, once for each number.
    status: answers with these instead, one each.
    requests: the paths and Range headers asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(CONTENT)
        self.ranges = True
        self.shifted = False
        self.cut: list[int] = []
        self.status: list[int] = []
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        """What --mirror is given."""
        return f"http://127.0.0.1:{self.server_port}/python"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its server is told to."""

    server: Server

    def log_message(self, *_):
        """Stays quiet."""

    def do_GET(self):
        """Sends a file, a piece of it, or an error."""
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        data = server.files.get(self.path.rsplit("/", 1)[-1])
        if server.status or data is None:
            self.send_error(server.status.pop(0) if server.status else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            start += server.shifted
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + server.cut.pop(0)] if server.cut else data[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(omniglot, "MD5", {name: hashlib.md5(data).hexdigest() for name, data in CONTENT.items()})
        yield server
        server.shutdown()


def fetch(folder, server, checked: bool = True) -> None:
    omniglot.fetch(str(folder), server.address, checked)


def refusal(folder, server, checked: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        fetch(folder, server, checked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_archives_arrive(tmp_path, server):
    fetch(tmp_path / "new" / "folder", server)
    assert contents(tmp_path / "new" / "folder") == CONTENT
    assert [path for path, _ in server.requests] == [f"/python/{name}" for name in CONTENT]


def test_archives_that_are_there_are_not_loaded_again(tmp_path, server):
    fetch(tmp_path, server)
    server.requests.clear()
    fetch(tmp_path, server)
    assert server.requests == []


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, server):
    server.cut = [100_000, 50_000]
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT
    ranges = [asked for path, asked in server.requests if path.endswith(BACKGROUND)]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_run_goes_on_where_the_last_one_gave_up(tmp_path, server):
    server.cut = [1000] * 3
    message = refusal(tmp_path, server)
    assert "broke off after 3000 bytes" in message and "to continue" in message
    assert contents(tmp_path) == {BACKGROUND + ".part": CONTENT[BACKGROUND][:3000]}
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT
    assert ("/python/" + BACKGROUND, "bytes=3000-") in server.requests


def test_a_server_without_ranges_begins_anew(tmp_path, server):
    server.ranges = False
    server.cut = [100_000]
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_a_server_that_sends_another_piece_is_not_trusted(tmp_path, server):
    server.shifted = True
    server.cut = [1000]
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_a_whole_part_is_only_checked(tmp_path, server):
    (tmp_path / (BACKGROUND + ".part")).write_bytes(CONTENT[BACKGROUND])
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT
    assert [path for path, _ in server.requests] == [f"/python/{name}" for name in CONTENT]


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path, server):
    (tmp_path / (BACKGROUND + ".part")).write_bytes(CONTENT[BACKGROUND] + b"more")
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_a_wrong_checksum_removes_the_file(tmp_path, server):
    server.files[BACKGROUND] = b"something else"
    message = refusal(tmp_path, server)
    assert hashlib.md5(b"something else").hexdigest() in message and "--no_checksum" in message
    assert contents(tmp_path) == {}


def test_a_part_of_another_file_is_found_by_its_checksum(tmp_path, server):
    (tmp_path / (BACKGROUND + ".part")).write_bytes(b"x" * 100)
    assert "MD5" in refusal(tmp_path, server)
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_other_archives_are_accepted_when_asked(tmp_path, server):
    server.files[BACKGROUND] = b"something else"
    fetch(tmp_path, server, checked=False)
    assert contents(tmp_path)[BACKGROUND] == b"something else"


def test_a_file_that_was_there_is_never_deleted(tmp_path, server):
    (tmp_path / BACKGROUND).write_bytes(b"mine")
    message = refusal(tmp_path, server)
    assert "is not the official archive" in message and "--no_checksum" in message
    assert contents(tmp_path) == {BACKGROUND: b"mine"}
    fetch(tmp_path, server, checked=False)
    assert contents(tmp_path)[BACKGROUND] == b"mine"


def test_a_busy_server_is_asked_again(tmp_path, server):
    server.status = [503, 429]
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_a_missing_file_is_not_asked_for_again(tmp_path, server):
    server.files = {}
    assert "404" in refusal(tmp_path, server)
    assert len(server.requests) == 1


def test_no_server(tmp_path, server):
    server.shutdown()
    server.server_close()
    assert "refused" in refusal(tmp_path, server)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://example.org", "example.org"])
def test_other_kinds_of_address_are_refused(tmp_path, mirror):
    with pytest.raises(UserError, match="https://"):
        omniglot.fetch(str(tmp_path), mirror, True)


def command(folder, server, *flags: str, before: str = "") -> subprocess.CompletedProcess:
    """Runs the program as users do, after the statements `before`."""
    arguments = ["omniglot", "--data_dir", str(folder), "--mirror", server.address, *flags]
    program = (
        f"import runpy, sys; sys.argv = {arguments!r}; runpy.run_module('maml.tasks.omniglot', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"no_proxy": "*"},
    )


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, server):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"  # within the last piece
    done = command(tmp_path, server, before=limit)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "could not be written" in done.stderr and "make room" in done.stderr
    assert contents(tmp_path) == {BACKGROUND + ".part": CONTENT[BACKGROUND][:500_000]}
    fetch(tmp_path, server)
    assert contents(tmp_path) == CONTENT


def test_the_published_sums_are_asked_for_by_default(tmp_path, server):
    done = command(tmp_path, server)
    assert done.returncode == 1 and "68d2efa1b9178cc56df9314c21c6e718 is needed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_whole_way(tmp_path, server):
    """Even where a folder data/omniglot stands beside data/omniglot.py."""
    write_omniglot_archives(tmp_path / "served")
    server.files = {name: (tmp_path / "served" / name).read_bytes() for name in CONTENT}
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    for path in [*ROOT.glob("data/*.py"), ROOT / "maml"]:
        (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-m", "maml.tasks.omniglot", "--mirror", server.address, "--no_checksum"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"no_proxy": "*"},
    )
    assert done.returncode == 0, done.stderr
    assert "1100 train, 100 val, 423 test" in done.stdout
    kept = sorted(os.listdir(tmp_path / "data" / "omniglot" / ".cache"))
    assert kept == [f"omniglot-{split}-28x1-nearest.images" for split in ("test", "train", "val")]


def test_a_member_that_would_leave_its_folder(tmp_path, server):
    write_archive(tmp_path / "bad.zip", {"images_background/../../../outside.png": b"x"})
    server.files[BACKGROUND] = (tmp_path / "bad.zip").read_bytes()
    done = command(tmp_path / "data", server, "--no_checksum")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "would leave its folder" in done.stderr
    assert not (tmp_path / "outside.png").exists()


def test_made_up_archives_look_like_omniglot():
    names = [name for half in ("images_background", "images_evaluation") for name, _ in omniglot_files(half)]
    assert len(names) == len(set(names)) == 32460
    assert len({name.rsplit("/", 1)[0] for name in names}) == 1623
    assert len({name.split("/")[0] for name in names}) == 50
