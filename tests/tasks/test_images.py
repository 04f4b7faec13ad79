"""Reading Omniglot and folders of classes, and refusing what is broken."""

import functools
import io
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from maml.errors import UserError
from maml.tasks import cache, decoding, image_files, omniglot_images
from maml.tasks.images import load_split
from maml.tasks.split import ImageSplit, too_small
from tests.image_fixtures import omniglot_files, write_archive, write_class_folders, write_omniglot_folders

DATA = os.environ.get("MAML_DATA", "")
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
needs_omniglot = pytest.mark.skipif(
    not os.path.isfile(os.path.join(DATA, "omniglot", ARCHIVES[0])),
    reason="set MAML_DATA to a folder with omniglot/images_background.zip and images_evaluation.zip",
)


@functools.cache
def half(name: str) -> dict[str, bytes]:
    """Members of a made-up archive."""
    return {f"{name}/{file}": data for file, data in omniglot_files(name)}


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MAML_CACHE_DIR", str(tmp_path / "shared-cache"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omniglot")
    for name in ARCHIVES:
        write_archive(folder / name, half(name.removesuffix(".zip")))
    return folder


def omniglot(folder, split="val", **options) -> ImageSplit:
    return load_split("omniglot", str(folder), split, image_size=28, channels=1, **options)


def mini(folder, split="train", size=84, channels=3, datasource="miniimagenet") -> ImageSplit:
    return load_split(datasource, str(folder), split, image_size=size, channels=channels)


def refusal(load, *arguments, **options) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def link(source, target):
    """Puts the archives of a folder into another one without copying them."""
    target.mkdir(exist_ok=True)
    for name in ARCHIVES:
        (target / name).symlink_to(pathlib.Path(source, name).resolve())


# Omniglot


def test_omniglot_split_sizes_and_disjoint_classes(archives, monkeypatch):
    monkeypatch.setattr(cache, "paths", lambda *_: [])
    monkeypatch.setattr(
        omniglot_images, "decode", lambda files, _, pixels, *rest: np.zeros((len(files), pixels), np.uint8)
    )
    splits = [omniglot(archives, name) for name in ("train", "val", "test")]
    assert [split.images.shape for split in splits] == [(22000, 784), (2000, 784), (8460, 784)]
    assert all(split.images.dtype == np.uint8 and (split.counts == 20).all() for split in splits)
    assert all(split.counts.dtype == np.int64 and len(split.counts) == len(split.names) for split in splits)
    assert len({name for split in splits for name in split.names}) == 1623


def test_omniglot_split_is_the_sorted_list_shuffled_with_seed_1():
    characters = [("B", "character02"), ("A", "character10"), ("B", "character01"), ("A", "character09")]
    # Sorted: A09 A10 B01 B02; random.Random(1).shuffle of four gives the places 3 0 2 1.
    expected = [("B", "character02"), ("A", "character09"), ("B", "character01"), ("A", "character10")]
    assert omniglot_images.omniglot_order(characters) == expected
    assert omniglot_images.omniglot_order(reversed(characters)) == expected


def test_the_split_of_maml_plus_plus_is_kept_beside_the_official_one(archives):
    """The same drawings, each in its cache."""
    ours, theirs = omniglot(archives), omniglot(archives, conventions="maml++")
    everyone = omniglot_images.plus_plus_order({tuple(name.split("/")) for name in all_names(archives)})
    assert [tuple(name.split("/")) for name in theirs.names] == everyone[1150:1200]
    assert len(ours.names) == 100 and omniglot(archives).names == ours.names
    both = set(ours.names) & set(theirs.names)
    for name in both:
        one, other = (split.images[20 * split.names.index(name)] for split in (ours, theirs))
        np.testing.assert_array_equal(one, other)
    assert both


def all_names(archives) -> list[str]:
    return [name for split in ("train", "val", "test") for name in omniglot(archives, split).names]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    write_omniglot_folders(folder)
    (folder / "images_background" / "Back_00" / "character01" / ".DS_Store").write_bytes(b"x")
    return folder


def test_archives_unpacked_folders_and_merged_folders_give_the_same(archives, unpacked, tmp_path):
    for part in ("images_background", "images_evaluation"):
        for alphabet in (unpacked / part).iterdir():
            (tmp_path / alphabet.name).symlink_to(alphabet)
    expected = omniglot(archives)
    for folder in (unpacked, tmp_path):
        found = omniglot(folder)
        assert found.names == expected.names
        np.testing.assert_array_equal(found.images, expected.images)


def test_archive_and_folder_may_be_mixed(archives, unpacked, tmp_path):
    (tmp_path / ARCHIVES[0]).symlink_to(archives / ARCHIVES[0])
    (tmp_path / "images_evaluation").symlink_to(unpacked / "images_evaluation")
    assert omniglot(tmp_path).names == omniglot(archives).names


def test_drawings_are_what_pillow_makes_of_the_official_request(archives):
    """The official code asks for LANCZOS on a 1-bit image and inverts it."""
    split = omniglot(archives)
    files = {name: data for part in ARCHIVES for name, data in half(part.removesuffix(".zip")).items()}
    for row, name in ((0, split.names[0]), (1999, split.names[-1])):
        drawing = sorted(file for file in files if f"/{name}/" in file)[row % 20]
        with Image.open(io.BytesIO(files[drawing])) as image:
            assert image.mode == "1"
            official = np.asarray(image.resize((28, 28), resample=Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(split.images[row].reshape(28, 28), np.where(official, 0, 255))


def test_lanczos_resizes_gray_images(archives):
    split = omniglot(archives, resize="lanczos")
    files = half("images_background") | half("images_evaluation")
    drawing = sorted(file for file in files if f"/{split.names[0]}/" in file)[0]
    with Image.open(io.BytesIO(files[drawing])) as image:
        expected = 255 - np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(split.images[0].reshape(28, 28), expected)
    assert np.mean((split.images > 0) & (split.images < 255)) > 0, "nearest would give black and white only"


def test_missing_folder_offers_the_download(tmp_path):
    message = refusal(omniglot, tmp_path / "none")
    assert str(tmp_path / "none") in message and "python -m maml.tasks.omniglot" in message


def test_default_folder_is_data_omniglot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(omniglot, "").startswith("data/omniglot: no such folder")


def test_empty_folder_is_refused(tmp_path):
    assert "no images_background.zip" in refusal(omniglot, tmp_path)


def test_one_archive_alone_is_refused(archives, tmp_path):
    (tmp_path / ARCHIVES[0]).symlink_to(archives / ARCHIVES[0])
    assert "has images_background.zip but no images_evaluation.zip" in refusal(omniglot, tmp_path)


def test_missing_characters_are_counted(tmp_path):
    members = {name: data for name, data in half("images_evaluation").items() if "/Eval_03/character02/" not in name}
    write_archive(tmp_path / ARCHIVES[0], half("images_background"))
    write_archive(tmp_path / ARCHIVES[1], members)
    assert "images_evaluation.zip has 658 characters, and Omniglot has 659 there" in refusal(omniglot, tmp_path)


def test_missing_drawings_are_named(tmp_path):
    members = dict(half("images_background"))
    del members[next(name for name in members if "/Back_05/character03/" in name)]
    write_archive(tmp_path / ARCHIVES[0], members)
    write_archive(tmp_path / ARCHIVES[1], half("images_evaluation"))
    message = refusal(omniglot, tmp_path)
    assert "Back_05/character03 (19)" in message and "20 drawings" in message


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "images_background\\..\\..\\x.png", "C:x.png"])
def test_members_outside_the_folder_are_refused(archives, tmp_path, name):
    link(archives, tmp_path)
    (tmp_path / ARCHIVES[0]).unlink()
    write_archive(tmp_path / ARCHIVES[0], {name: b"x"})
    message = refusal(omniglot, tmp_path)
    assert "would leave its folder" in message and "images_background.zip" in message


def test_what_is_no_drawing_is_passed_over(archives, tmp_path):
    link(archives, tmp_path)
    (tmp_path / ARCHIVES[1]).unlink()
    extra = {"images_evaluation/notes.txt": b"x", "__MACOSX/images_evaluation/._a": b"x"}
    write_archive(tmp_path / ARCHIVES[1], half("images_evaluation") | extra)
    assert omniglot(tmp_path).names == omniglot(archives).names


def test_drawings_at_another_depth_are_named_and_nobody_is_told_to_delete_them(archives, tmp_path):
    link(archives, tmp_path)
    (tmp_path / ARCHIVES[1]).unlink()
    extra = {"images_evaluation/a/b/c/deep.png": b"x", "images_evaluation/a/shallow.png": b"x"}
    write_archive(tmp_path / ARCHIVES[1], half("images_evaluation") | extra)
    message = refusal(omniglot, tmp_path)
    assert "2 drawings do not lie in <alphabet>/<character>/: a/b/c/deep.png" in message
    assert "remove" not in message and "delete" not in message


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not really", b"<html>404</html>"])
def test_corrupt_archive_is_named(archives, tmp_path, damage):
    link(archives, tmp_path)
    (tmp_path / ARCHIVES[0]).unlink()
    (tmp_path / ARCHIVES[0]).write_bytes(damage)
    message = refusal(omniglot, tmp_path)
    assert (
        "images_background.zip is not a readable zip archive" in message and "python -m maml.tasks.omniglot" in message
    )


def test_unreadable_drawings_are_listed(archives, tmp_path):
    link(archives, tmp_path)
    (tmp_path / ARCHIVES[1]).unlink()
    members = {}
    for name, data in half("images_evaluation").items():
        broken = name.endswith(("_07.png", "_08.png", "_09.png"))
        members[name] = data[:60] if broken else data
    write_archive(tmp_path / ARCHIVES[1], members)
    message = refusal(omniglot, tmp_path)
    unreadable = 3 * sum(name.startswith("Eval") for name in omniglot(archives).names)
    assert f"{unreadable} of 2000 images are unreadable" in message and "_07.png" in message
    assert f"and {unreadable - 5} more" in message


def test_a_drawing_with_a_wrong_checksum_is_named(archives, tmp_path):
    first = omniglot(archives).names[0]
    part = "images_background" if first.startswith("Back") else "images_evaluation"
    link(archives, tmp_path)
    data = bytearray((tmp_path / f"{part}.zip").read_bytes())
    data[data.index(f"{first}/".encode()) + 100] ^= 0xFF
    (tmp_path / f"{part}.zip").unlink()
    (tmp_path / f"{part}.zip").write_bytes(data)
    message = refusal(omniglot, tmp_path)
    assert "1 of 2000 images are unreadable" in message and "CRC" in message and first in message


def test_a_drawing_that_unpacks_to_megabytes_is_refused(archives, tmp_path):
    first = omniglot(archives).names[0]
    part = "images_background" if first.startswith("Back") else "images_evaluation"
    link(archives, tmp_path)
    (tmp_path / f"{part}.zip").unlink()
    with zipfile.ZipFile(tmp_path / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in half(part).items():
            archive.writestr(name, bytes(1 << 24) if f"/{first}/" in name and name.endswith("_01.png") else data)
    message = refusal(omniglot, tmp_path)
    assert "1 of 2000 images are unreadable" in message and "16777216 bytes" in message


@needs_omniglot
def test_real_omniglot(tmp_path):
    link(os.path.join(DATA, "omniglot"), tmp_path / "omniglot")
    splits = {name: omniglot(tmp_path / "omniglot", name) for name in ("train", "val", "test")}
    assert [len(split.names) for split in splits.values()] == [1100, 100, 423]
    names = {name for split in splits.values() for name in split.names}
    assert len(names) == 1623 and len({name.split("/")[0] for name in names}) == 50
    for split in splits.values():
        assert set(np.unique(split.images)) == {0, 255}
        assert 0.05 < np.mean(split.images == 255) < 0.12, "ink is the smaller part"
        assert split.images.any(axis=1).all(), "no drawing is empty"
    first = splits["train"].names[0]
    assert first == "Gurmukhi/character23", "an evaluation alphabet; the split is the same everywhere"
    with zipfile.ZipFile(os.path.join(DATA, "omniglot", ARCHIVES[1])) as archive:
        file = sorted(name for name in archive.namelist() if f"/{first}/" in name)[0]
        with Image.open(archive.open(file)) as image:
            expected = 255 - 255 * np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS)).astype(np.uint8)
    np.testing.assert_array_equal(splits["train"].images[0].reshape(28, 28), expected)


# Folders of classes


def test_class_folders(tmp_path):
    write_class_folders(tmp_path, {"train": 3, "val": 2}, per_class=4)
    (tmp_path / "train" / "train_01" / "003.png").unlink()
    for hidden in ("train/.DS_Store", "train/train_00/.DS_Store", "train/train_00/Thumbs.db"):
        (tmp_path / hidden).write_bytes(b"x")
    split = mini(tmp_path)
    assert split.names == ("train_00", "train_01", "train_02") and split.counts.tolist() == [4, 3, 4]
    assert split.images.shape == (11, 84 * 84 * 3)
    for row, file in ((0, "train_00/000.png"), (4, "train_01/000.png"), (10, "train_02/003.png")):
        with Image.open(tmp_path / "train" / file) as image:
            np.testing.assert_array_equal(split.images[row].reshape(84, 84, 3), np.asarray(image))
    assert mini(tmp_path, "val").names == ("val_00", "val_01")


@pytest.mark.parametrize("size", [40, 300])
def test_other_sizes_are_resized_with_lanczos(tmp_path, size):
    write_class_folders(tmp_path, {"train": 2}, per_class=3, size=size)
    split = mini(tmp_path)
    for row, file in enumerate(sorted((tmp_path / "train").glob("*/*"))):
        with Image.open(file) as image:
            expected = np.asarray(image.resize((84, 84), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(split.images[row].reshape(84, 84, 3), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPEG", ".png"])
def test_suffixes(tmp_path, suffix):
    write_class_folders(tmp_path, {"train": 1}, per_class=2, suffix=suffix)
    assert mini(tmp_path).counts.tolist() == [2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_color_or_gray(tmp_path, mode):
    folder = tmp_path / "train" / "one"
    folder.mkdir(parents=True)
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("L", (84, 84)).convert(mode).save(folder / f"a.{suffix}")
    assert mini(tmp_path).images.shape == (1, 84 * 84 * 3)
    assert mini(tmp_path, channels=1, datasource="folder").images.shape == (1, 84 * 84)


def test_16_bits_keep_their_upper_8(tmp_path):
    folder = tmp_path / "train" / "one"
    folder.mkdir(parents=True)
    values = (np.arange(84 * 84, dtype=np.uint32) * 9).astype(np.uint16).reshape(84, 84)
    Image.fromarray(values).save(folder / "a.png")
    gray = mini(tmp_path, channels=1, datasource="folder").images.reshape(84, 84)
    np.testing.assert_array_equal(gray, values >> 8)
    assert len(np.unique(gray)) > 200


@pytest.mark.parametrize("kind", ["PNG", "MPO"])
def test_of_an_animation_the_first_picture_counts(tmp_path, kind):
    folder = tmp_path / "train" / "one"
    folder.mkdir(parents=True)
    first, second = (Image.new("RGB", (84, 84), color) for color in ("red", "blue"))
    first.save(folder / ("a.png" if kind == "PNG" else "a.jpg"), kind, save_all=True, append_images=[second])
    red, green, blue = mini(tmp_path).images.reshape(84, 84, 3)[40, 40]
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_read_whatever_their_suffix(tmp_path, kind):
    write_class_folders(tmp_path, {"train": 1}, per_class=1)
    folder = tmp_path / "train" / "train_00"
    suffix = {"TIFF": ".tif"}.get(kind, f".{kind.lower()}")
    red, several = Image.new("RGB", (84, 84), (250, 0, 0)), {"save_all": True} if kind in ("GIF", "TIFF") else {}
    more = {"append_images": [Image.new("RGB", (84, 84))]} if several else {}
    red.save(folder / f"b{suffix}", kind, **several, **more)
    shutil.copy(folder / f"b{suffix}", folder / "c.png")
    images = mini(tmp_path).images.reshape(3, 84, 84, 3).astype(int)
    for image in images[1:]:
        assert np.abs(image - (250, 0, 0)).max() < 8, "of several pictures, the first one counts"


def test_what_pillow_does_not_know_as_an_image_is_refused(tmp_path):
    write_class_folders(tmp_path, {"train": 1}, per_class=1)
    folder = tmp_path / "train" / "train_00"
    (folder / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    assert "b.png (none of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP)" in refusal(mini, tmp_path)
    Image.new("F", (84, 84)).save(folder / "b.tif")
    (folder / "b.png").unlink()
    assert "b.tif (floating-point pixels" in refusal(mini, tmp_path)


STRANGE_NAMES = (
    "-rf",
    "--logdir=x",
    " spaces  ",
    "ünï",
    "日本語",
    "new\nline",
    "$(touch x)",
    "a'b\"c",
    "\udcff",
    "x" * 200,
)


def test_strange_names_are_names(tmp_path):
    """Of classes and of images; on the screen what cannot be printed is escaped."""
    for name in STRANGE_NAMES:
        write_class_folders(tmp_path / "made", {"train": 1}, per_class=2)
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "made" / "train" / "train_00").rename(tmp_path / "train" / name)
        (tmp_path / "train" / name / "000.png").rename(tmp_path / "train" / name / f"{name}.png")
    assert mini(tmp_path).names == tuple(sorted(STRANGE_NAMES))
    assert isinstance(mini(tmp_path).images, np.memmap) and mini(tmp_path).names == tuple(sorted(STRANGE_NAMES))
    for name in STRANGE_NAMES:
        (tmp_path / "train" / name / f"{name}.png").write_bytes(b"")
    message = refusal(mini, tmp_path)
    assert "10 of 20 images are unreadable" in message
    assert message.isprintable()


def test_links_are_followed_wherever_they_lead_if_there_is_an_image(tmp_path):
    """Data sets are often made of links; nothing is ever written through one."""
    write_class_folders(tmp_path / "elsewhere", {"train": 2}, per_class=2)
    data = tmp_path / "data"
    (data / "train" / "one").mkdir(parents=True)
    (data / "train" / "one" / "a.png").symlink_to(tmp_path / "elsewhere" / "train" / "train_00" / "000.png")
    (data / "train" / "two").symlink_to(tmp_path / "elsewhere" / "train" / "train_01")
    assert mini(data).counts.tolist() == [1, 2]
    (data / "train" / "loop").symlink_to(data / "train")
    assert "does a link lead back" in refusal(mini, data)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    write_class_folders(tmp_path, {"train": 1}, per_class=1)
    folder = tmp_path / "train" / "train_00"
    os.mkfifo(folder / "pipe.png")
    (folder / "random.png").symlink_to("/dev/zero")
    message = refusal(mini, tmp_path)
    assert "pipe.png (not a plain file)" in message and "random.png (not a plain file)" in message


def test_own_data_of_any_size(tmp_path):
    write_class_folders(tmp_path, {"train": 2}, per_class=2, size=10, channels=1)
    split = mini(tmp_path, size=10, channels=1, datasource="folder")
    with Image.open(tmp_path / "train" / "train_00" / "000.png") as image:
        np.testing.assert_array_equal(split.images[0].reshape(10, 10), np.asarray(image))


def test_own_data_needs_a_folder():
    assert "--data_dir" in refusal(mini, "", datasource="folder")


def test_unknown_names_are_refused(tmp_path):
    assert "tinyimagenet" in refusal(mini, tmp_path, datasource="tinyimagenet")
    assert "dev" in refusal(mini, tmp_path, "dev")
    assert "4 channels" in refusal(mini, tmp_path, channels=4)


def test_missing_folders_name_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "data/miniImagenet: no such folder; run `" in refusal(mini, "")
    write_class_folders(tmp_path, {"train": 1}, per_class=1)
    assert "no folder val" in refusal(mini, tmp_path, "val")
    (tmp_path / "test").mkdir()
    assert "no images in class folders" in refusal(mini, tmp_path, "test")
    assert "--make_splits" in refusal(mini, tmp_path, "val", datasource="folder")


def test_all_unreadable_images_are_counted_and_the_first_named(tmp_path):
    write_class_folders(tmp_path, {"train": 2}, per_class=6)
    files = sorted((tmp_path / "train").glob("*/*"))
    files[0].write_bytes(files[0].read_bytes()[:300])  # truncated
    files[1].write_bytes(b"")
    files[2].write_bytes(b"GIF89a no image")
    files[3].write_bytes(png_that_claims(100_000, 100_000))
    files[4].unlink()
    files[4].symlink_to(tmp_path / "nowhere")
    damaged = bytearray(files[7].read_bytes())
    damaged[200] ^= 0xFF
    files[7].write_bytes(damaged)
    message = refusal(mini, tmp_path)
    assert "6 of 12 images are unreadable" in message
    for file in files[:5]:
        assert str(file) in message
    assert "and 1 more" in message


def test_an_image_that_claims_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    """Pillow itself would begin with this one."""
    write_class_folders(tmp_path, {"train": 1}, per_class=1)
    (tmp_path / "train" / "train_00" / "big.png").write_bytes(png_that_claims(8_000, 8_000))
    assert "big.png (8000 x 8000 pixels)" in refusal(mini, tmp_path)


def test_large_images_are_read_in_parallel_with_the_same_result(tmp_path, monkeypatch):
    write_class_folders(tmp_path, {"train": 2}, per_class=4, size=300)
    parallel = np.array(mini(tmp_path).images)
    shutil.rmtree(tmp_path / ".cache")
    monkeypatch.setattr(image_files, "_large", lambda file: False)
    np.testing.assert_array_equal(mini(tmp_path).images, parallel)


@pytest.fixture
def counted_processes(monkeypatch):
    """Three processes decode ten images and more; the number started."""
    started = []
    monkeypatch.setattr(image_files, "_MANY", 10)
    monkeypatch.setattr(image_files, "_PIECE", 4)
    monkeypatch.setattr(decoding, "cores", lambda: 3)
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[-1]
    )
    yield started
    assert all(process.returncode is not None for process in started), "a process was left"


def test_many_small_images_are_read_by_processes_with_the_same_result(tmp_path, counted_processes, monkeypatch):
    """27 images in pieces of 4: the last one is smaller, and three processes do not divide the seven."""
    write_class_folders(tmp_path, {"train": 3}, per_class=9, size=20)
    (tmp_path / "train" / "train_01" / "003.png").write_bytes(b"no image")
    (tmp_path / "train" / "train_02" / "008.png").write_bytes(b"nor this")
    message = refusal(mini, tmp_path)
    assert "2 of 27 images are unreadable" in message
    assert re.search(r"train_01/003.png .*train_02/008.png", message.replace(os.sep, "/"))
    for name in ("train_01/003.png", "train_02/008.png"):
        (tmp_path / "train" / name).unlink()
    divided = np.array(mini(tmp_path).images)
    assert len(counted_processes) == 6
    shutil.rmtree(tmp_path / ".cache")
    monkeypatch.setattr(image_files, "_MANY", 100)
    np.testing.assert_array_equal(mini(tmp_path).images, divided)
    assert len(counted_processes) == 6, "this time by none"


@pytest.mark.parametrize("zipped", [0, 1])
def test_members_of_an_archive_stay_here_whatever_lies_beside_them(
    archives, unpacked, tmp_path, counted_processes, zipped
):
    """Omniglot's one half as a folder, the other as an archive, whose members no other process can open."""
    folder = ARCHIVES[1 - zipped].removesuffix(".zip")
    (tmp_path / ARCHIVES[zipped]).symlink_to(archives / ARCHIVES[zipped])
    (tmp_path / folder).symlink_to(unpacked / folder)
    np.testing.assert_array_equal(omniglot(tmp_path).images, omniglot(archives).images)
    assert not counted_processes


def test_a_process_that_is_killed_while_it_decodes_is_one_line(tmp_path, counted_processes, monkeypatch):
    """As the system does when the memory is full."""
    write_class_folders(tmp_path, {"train": 3}, per_class=9, size=20)
    read = decoding.pickle.load

    def load(file):
        counted_processes[1].kill()
        counted_processes[1].wait()
        return read(file)

    monkeypatch.setattr(decoding.pickle, "load", load)
    message = refusal(mini, tmp_path)
    assert "a process that decodes images ended with code -9" in message and "\n" not in message
    assert not list(tmp_path.rglob("*.images")), "nothing half-written is taken for whole"


def test_processes_that_decode_end_with_the_one_that_asks():
    """SIGKILL leaves no time for a word to them."""
    script = (
        "import functools, time\n"
        "from maml.tasks.decoding import map_in_processes\n"
        "for answer in map_in_processes(functools.partial(max, 0), range(1, 100)):\n"
        "    print('answered', flush=True)\n"
        "    time.sleep(60)\n"
    )
    asks = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert asks.stdout.readline() == "answered\n"
    children = [int(child) for child in pathlib.Path(f"/proc/{asks.pid}/task/{asks.pid}/children").read_text().split()]
    assert children
    asks.kill()
    asks.wait()
    deadline = time.monotonic() + 30
    while alive := [child for child in children if running(child)]:
        assert time.monotonic() < deadline, f"{alive} are left"
        time.sleep(0.05)


def running(process: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Enough classes and images


def split_of(counts: list[int]) -> ImageSplit:
    total = sum(counts)
    names = tuple(f"n{index:02d}" for index in range(len(counts)))
    return ImageSplit(np.zeros((total, 4), np.uint8), np.array(counts), names)


def test_enough_classes_and_images():
    too_small(split_of([20] * 5), "miniimagenet train", 5, 5, 15)


def test_too_few_classes():
    message = refusal(too_small, split_of([20] * 100), "omniglot val", 200, 1, 1)
    assert message == "omniglot val has 100 classes, and --num_classes=200 needs 200: lower --num_classes"


def test_classes_that_are_too_small_are_left_out():
    assert too_small(split_of([600, 12, 19, 20]), "miniimagenet train", 2, 5, 15) == ["n01", "n02"]


@pytest.mark.parametrize(
    ("counts", "way_out"),
    [
        ([600, 12, 19], "--query_size=14 would do"),
        ([600, 4, 1], "--update_batch_size=2 --query_size=2 would do"),
        ([600, 1, 1], "add images, at least two a class"),
    ],
)
def test_too_few_images_name_the_smallest_classes_and_flags_that_help(counts, way_out):
    message = refusal(too_small, split_of(counts), "miniimagenet train", 2, 5, 15)
    assert message.startswith("miniimagenet train has 1 classes with the 20 images that 5-shot with 15 queries needs")
    assert way_out in message
    assert f"The smallest classes: n0{np.argmin(counts)} ({min(counts)})" in message
    flags = [int(value) for value in re.findall(r"=(\d+)", way_out)]
    if flags:
        shots, queries = flags if len(flags) == 2 else (5, flags[0])
        assert too_small(split_of(counts), "", 2, shots, queries) == [f"n0{np.argmin(counts)}"]


def test_a_name_cannot_break_the_line_or_color_the_screen():
    split = split_of([1, 1])._replace(names=("a\x1b[31m\nb\udcff", "c"))
    assert "'a\\x1b[31m\\nb\\udcff (1)'" in refusal(too_small, split, "folder train", 2, 5, 15)


def test_long_lists_are_cut():
    assert image_files.listed(["a", "b"]) == "a, b"
    assert image_files.listed([str(number) for number in range(9)]) == "0, 1, 2, 3, 4 and 4 more"
    assert "\n" not in image_files.listed(["a\nb"])
