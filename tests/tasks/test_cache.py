"""The cache of prepared images: it is used, noticed to be stale or damaged, and never half-written."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from maml.config import Config
from maml.data_generator import DataGenerator, resident
from maml.errors import UserError
from maml.tasks import cache, images, split
from maml.tasks.images import load_split
from maml.tasks.split import ImageSplit
from tests.image_fixtures import write_class_folders

LOADS = """
import os, sys
import numpy as np
from maml.tasks.images import load_split
split = load_split("miniimagenet", sys.argv[1], "train", image_size=84, channels=3)
print(type(split.images).__name__, int(np.sum(split.images, dtype=np.int64)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small data folder; nothing is kept outside the test's own folder."""
    monkeypatch.setenv("MAML_CACHE_DIR", str(tmp_path / "shared"))
    write_class_folders(tmp_path / "data", {"train": 3}, per_class=10)
    return tmp_path / "data"


def load(folder) -> ImageSplit:
    return load_split("miniimagenet", str(folder), "train", image_size=84, channels=3)


def kept_files(folder) -> list[str]:
    return sorted(os.listdir(folder / ".cache"))


def no_decoding(*arguments):
    raise AssertionError("images were decoded again")


def start(folder, before: str = "", **options) -> subprocess.Popen:
    """Loads the folder in another process, after the statements `before`."""
    return subprocess.Popen(
        [sys.executable, "-c", before + LOADS, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_images_are_decoded_once_and_memory_mapped(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(images, "decode", no_decoding)
    again = load(folder)
    assert isinstance(first.images, np.memmap) and isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.counts, again.counts)
    assert first.names == again.names and again.counts.dtype == np.int64
    assert kept_files(folder) == ["miniimagenet-train-84x3-lanczos.images"]


def test_memory_mapped_images_cannot_be_changed(folder):
    with pytest.raises(ValueError, match="read-only"):
        load(folder).images[0] = 0


def test_other_settings_have_other_files(folder):
    load(folder)
    load_split("folder", str(folder), "train", image_size=20, channels=1)
    assert load(folder).images.shape == (30, 84 * 84 * 3)
    assert len(kept_files(folder)) == 2


@pytest.mark.parametrize("change", ["replaced", "touched", "grown", "added", "removed", "renamed"])
def test_a_changed_source_is_read_again_and_the_old_file_replaced(folder, change):
    before = load(folder)
    file = folder / "train" / "train_00" / "000.png"
    if change == "replaced":
        file.write_bytes((folder / "train" / "train_01" / "000.png").read_bytes())
    elif change == "touched":
        os.utime(file, (1, 1))
    elif change == "grown":
        times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(file.read_bytes() + b"x")
        os.utime(file, ns=times)
    elif change == "added":
        (folder / "train" / "train_00" / "new.png").write_bytes(file.read_bytes())
    elif change == "removed":
        file.unlink()
    else:
        os.rename(folder / "train" / "train_00", folder / "train" / "train_99")
    inode = os.stat(folder / ".cache" / kept_files(folder)[0]).st_ino
    after = load(folder)
    assert os.stat(folder / ".cache" / kept_files(folder)[0]).st_ino != inode
    assert len(kept_files(folder)) == 1
    assert after.counts.sum() == 30 + {"added": 1, "removed": -1}.get(change, 0)
    if change == "replaced":
        np.testing.assert_array_equal(after.images[0], before.images[10])
    if change == "renamed":
        assert after.names[-1] == "train_99"


@pytest.mark.parametrize("damage", ["shorter", "longer", "header", "magic", "empty", "text", "length"])
def test_a_damaged_file_is_noticed_and_made_again(folder, damage):
    expected = np.array(load(folder).images)
    path = folder / ".cache" / kept_files(folder)[0]
    data = bytearray(path.read_bytes())
    if damage == "header":
        data = data.replace(b'"counts": [10, ', b'"counts": [11, ')
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "length":
        data[8:16] = b"\xff" * 8
    else:
        data = {"shorter": data[:-1], "longer": data + b"x", "empty": bytearray(), "text": bytearray(b"text\n")}[damage]
    path.write_bytes(data)
    inode = os.stat(path).st_ino
    np.testing.assert_array_equal(load(folder).images, expected)
    assert os.stat(path).st_ino != inode, "the damaged file was replaced"


def test_an_unwritable_folder_sends_the_cache_elsewhere(folder, tmp_path, monkeypatch):
    (folder / ".cache").write_bytes(b"a file where the folder should be")
    load(folder)
    assert len(list((tmp_path / "shared").glob("*/*.images"))) == 1
    monkeypatch.setattr(images, "decode", no_decoding)
    assert isinstance(load(folder).images, np.memmap)


def test_a_read_only_folder_is_left_alone_even_by_root(folder, tmp_path):
    folder.chmod(0o555)
    load(folder)
    folder.chmod(0o755)
    assert not (folder / ".cache").exists()
    assert len(list((tmp_path / "shared").glob("*/*.images"))) == 1


def test_without_any_writable_folder_images_come_without_a_cache(folder, tmp_path, capsys):
    (folder / ".cache").write_bytes(b"")
    (tmp_path / "shared").write_bytes(b"")
    assert load(folder).images.shape == (30, 84 * 84 * 3)
    assert capsys.readouterr().err == ""


def test_the_shared_folder_tells_data_folders_apart(folder, tmp_path):
    write_class_folders(tmp_path / "other", {"train": 2}, per_class=10, seed=1)
    for data in (folder, tmp_path / "other"):
        (data / ".cache").write_bytes(b"")
    assert [len(load(data).names) for data in (folder, tmp_path / "other", folder)] == [3, 2, 3]
    assert len(list((tmp_path / "shared").glob("*/*.images"))) == 2


def test_a_full_disk_gives_one_warning_and_leaves_nothing(folder):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    process = start(folder, limit)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("ndarray") and int(out.split()[1]) == np.sum(load(folder).images, dtype=np.int64)
    assert err.count("\n") == 1 and err.startswith("warning:") and "going on without it" in err
    assert [name for name in kept_files(folder) if name.endswith(".tmp")] == []


def test_images_are_decoded_into_their_file(folder, monkeypatch):
    """Not into memory, which need not hold them: even less of it than one image takes is enough."""
    seen, decode = [], images.decode

    def watched(*given):
        seen.append(given[-1])
        return decode(*given)

    monkeypatch.setattr(images, "decode", watched)
    monkeypatch.setattr(split, "physical_memory", lambda: 1000)
    kept = load(folder)
    assert isinstance(seen[0], np.memmap) and len(kept_files(folder)) == 1
    monkeypatch.undo()
    shutil.rmtree(folder / ".cache")
    (folder / ".cache").write_bytes(b"")
    monkeypatch.setenv("MAML_CACHE_DIR", str(folder / ".cache"))
    np.testing.assert_array_equal(load(folder).images, kept.images)
    monkeypatch.setattr(split, "physical_memory", lambda: 1000)
    with pytest.raises(UserError, match="they cannot be kept on disk, and this machine has"):
        load(folder)


def test_a_disk_without_room_is_found_before_images_are_read(folder, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    expected = load(folder).images
    shutil.rmtree(folder / ".cache")
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "fsync", full)
    np.testing.assert_array_equal(load(folder).images, expected)
    assert capsys.readouterr().err.count("the disk is full") == 1 and kept_files(folder) == []


def test_the_first_place_with_room_is_taken(folder, tmp_path, monkeypatch):
    tried, reserve = [], os.posix_fallocate

    def full_at_first(descriptor, *arguments):
        tried.append(descriptor)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        reserve(descriptor, *arguments)

    monkeypatch.setattr(os, "posix_fallocate", full_at_first)
    kept = load(folder)
    assert len(tried) == 2 and kept_files(folder) == []
    [path] = (tmp_path / "shared").glob("*/*.images")
    assert isinstance(kept.images, np.memmap) and path.stat().st_size > kept.images.size


def test_a_full_disk_is_called_so(folder, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert load(folder).images.shape == (30, 84 * 84 * 3)
    assert "the disk is full" in capsys.readouterr().err
    assert kept_files(folder) == []


def test_a_killed_process_leaves_no_visible_file(folder):
    process = start(folder, "import os; os.fsync = lambda fd: os.kill(os.getpid(), 9)\n")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = kept_files(folder)
    assert left.endswith(".tmp")
    load(folder)
    assert left in kept_files(folder), "a young temporary file may belong to a living process"
    old = time.time() - 7200
    os.utime(folder / ".cache" / left, (old, old))
    os.utime(folder / "train" / "train_00" / "000.png", (1, 1))
    load(folder)
    assert kept_files(folder) == ["miniimagenet-train-84x3-lanczos.images"]


def test_an_interrupted_write_leaves_nothing(folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert kept_files(folder) == []


def test_processes_at_once_agree(folder):
    wait = f"import time; time.sleep(max(0, {time.time() + 2} - time.time()))\n"
    processes = [start(folder, "from maml.tasks.images import load_split\n" + wait) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len(set(outputs)) == 1 and outputs[0][0].startswith("memmap")
    assert kept_files(folder) == ["miniimagenet-train-84x3-lanczos.images"]


def test_a_file_that_another_process_replaced_stays_readable(folder):
    first = load(folder)
    expected = np.array(first.images)
    os.utime(folder / "train" / "train_00" / "000.png", (1, 1))
    load(folder)
    np.testing.assert_array_equal(first.images, expected)


def test_store_and_load(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    place = str(tmp_path / "deep" / "er" / "x.images")
    assert cache.store([place], "key", pixels, {"names": ["a\udc80"]}) == place
    found = cache.load(place, "key")
    assert found is not None
    np.testing.assert_array_equal(found[0], pixels)
    assert found[1] == {"names": ["a\udc80"]}
    assert cache.load(place, "other key") is None
    assert cache.load(str(tmp_path / "none"), "key") is None


def test_home_is_the_last_place(tmp_path, monkeypatch):
    monkeypatch.delenv("MAML_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = cache.paths("d", "x")
    assert first == os.path.join(os.path.abspath("d"), ".cache", "x")
    assert second.startswith(str(tmp_path / ".cache" / "maml"))


def test_loading_is_fast(folder):
    load(folder)
    begun = time.perf_counter()
    load(folder)
    assert time.perf_counter() - begun < 0.3


def test_kept_images_are_the_file_and_no_copy_of_it(folder):
    """What is drawn of the mapped file is what is drawn of a copy in memory, compiled by XLA too."""
    load(folder)
    kept = load(folder)
    assert isinstance(kept.images, np.memmap)
    tensor = resident(kept.images)
    assert np.asarray(memoryview(tensor)).ctypes.data == kept.images.ctypes.data and tensor.shape == kept.images.shape
    copied = kept._replace(images=np.array(kept.images))
    flags = {"datasource": "miniimagenet", "num_classes": 2, "update_batch_size": 1, "query_size": 3}
    one, other = (
        DataGenerator(Config.from_flags(flags), ("train",), load=lambda *args, split=split, **options: split)
        for split in (kept, copied)
    )
    del kept, tensor
    for jit in (False, True):
        drawn = [
            tf.function(lambda index, data=data: data.episodes("train", index, 4), jit_compile=jit, autograph=False)(3)
            for data in (one, other)
        ]
        for mapped, expected in zip(*drawn, strict=True):
            np.testing.assert_array_equal(mapped, expected)


def test_a_tensor_of_mapped_images_outlives_the_array_and_the_file(folder):
    before = np.array(load(folder).images)
    kept = load(folder).images
    path, tensor = kept.filename, resident(kept)
    del kept
    os.unlink(path)
    gc.collect()
    np.testing.assert_array_equal(tensor, before)
