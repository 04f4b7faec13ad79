"""Data sets as they are handed out, made up in their form and at a smaller size."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import proc_images
from maml.tasks.images import load_split
from maml.tasks.prepare import known, lists

CLASSES = (4, 2, 2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Small whole data sets, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name in ("CUB", "CIFAR_FS", "FC100", "TIERED"):
        whole = getattr(known, name)._replace(classes=CLASSES, images=24, size=20)
        monkeypatch.setattr(known, name, whole)
    return tmp_path


def pixels(index: int, size: int = 20) -> np.ndarray:
    return np.full((size, size, 3), 10 * index + 5, np.uint8)


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def cub(root: str = "CUB_200_2011") -> None:
    for index in range(8):
        for image in range(3):
            write(f"{root}/images/{index + 1:03d}.Bird_{index}/b_{image}.png", png(index))
    write(f"{root}/classes.txt", b"1 001.Bird_0")


def cifar_fs(root: str = "cifar100") -> None:
    names = [f"class_{index}" for index in range(8)]
    for index, name in enumerate(names):
        for image in range(3):
            write(f"{root}/data/{name}/{image}.png", png(index))
    for split, part in (("train", names[:4]), ("val", names[4:6]), ("test", names[6:])):
        write(f"{root}/splits/bertinetto/{split}.txt", "\n".join(part).encode())


def arrays(start: str, root: str = "arrays") -> None:
    first = 0
    for split, number in zip(known.SPLITS, CLASSES, strict=True):
        labels = [first + index for index in range(number) for _ in range(3)]
        values = {"data": np.stack([pixels(label) for label in labels]), "labels": labels}
        write(f"{root}/{start}_{split}.pickle", pickle.dumps(values))
        first += number


def tiered(root: str = "tiered") -> None:
    first = 0
    for split, number in zip(known.SPLITS, CLASSES, strict=True):
        labels = np.repeat(np.arange(number), 3)
        images = [np.frombuffer(png(first + label), np.uint8)[:, None] for label in labels]
        names = {"label_specific": labels, "label_specific_str": [f"fish {i}, n{i}" for i in range(number)]}
        write(f"{root}/{split}_images_png.pkl", pickle.dumps(images))
        write(f"{root}/{split}_labels.pkl", pickle.dumps(names))
        first += number


FORMS = {
    "CUB-200-2011": (cub, "CUB_200_2011", [0, 2, 4, 6, 1, 5, 3, 7]),
    "CIFAR-FS": (cifar_fs, "cifar100", range(8)),
    "FC100": (lambda: arrays("FC100"), "arrays", range(8)),
    "tieredImageNet": (tiered, "tiered", range(8)),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_is_recognized_and_split_as_in_the_papers(name, capsys):
    make, source, order = FORMS[name]
    make()
    assert proc_images.main(["--source", source, "--output", "ready"]) == 0
    said = capsys.readouterr().out
    assert f"{source}: {name}, 24 images" in said and "4 train, 2 val, 2 test classes" in said
    splits = [load_split("folder", "ready", split, image_size=20, channels=3) for split in known.SPLITS]
    found = [split.images[start].mean() for split in splits for start in range(0, len(split.images), 3)]
    assert sorted(found[:4]) == sorted(10 * index + 5 for index in list(order)[:4])
    assert sorted(found[4:6]) == sorted(10 * index + 5 for index in list(order)[4:6])
    assert sorted(found[6:]) == sorted(10 * index + 5 for index in list(order)[6:])


@pytest.mark.parametrize("name", FORMS)
def test_a_part_of_one_is_refused(name, capsys, tmp_path):
    make, source, _ = FORMS[name]
    make()
    for path in sorted(Path(source).rglob("*.png"))[-4:]:
        path.unlink()
    for path in Path(source).glob("*test*"):
        path.unlink()
    assert proc_images.main(["--source", source, "--output", "ready"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("missing" in said or "1 classes have no folder" in said)
    assert not Path("ready").exists()


def test_other_data_needs_an_output(capsys):
    cub()
    assert proc_images.main(["--source", "CUB_200_2011"]) == 1
    assert "is CUB-200-2011; name with --output" in capsys.readouterr().err


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_pickles_cannot_run_anything(capsys):
    arrays("FC100")
    write("arrays/FC100_val.pickle", pickle.dumps({"data": Hostile(), "labels": []}))
    assert proc_images.main(["--source", "arrays", "--output", "ready"]) == 1
    said = capsys.readouterr()
    assert "is refused" in said.err and "run" not in said.out


OFFICIAL = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112",)}


@pytest.mark.parametrize("form", ["folders", "zip", "zip of splits", "three zips", "zip in a folder"])
def test_miniimagenet_whose_split_is_known_needs_no_lists(monkeypatch, form, capsys):
    monkeypatch.setattr(lists, "CLASSES", OFFICIAL)
    monkeypatch.setattr(lists, "PER_CLASS", 2)
    files = {
        (split, f"{name}/{name}_{image}.png"): png(index)
        for split, names in OFFICIAL.items()
        for index, name in enumerate(names)
        for image in range(2)
    }
    source = "mini"
    if form == "folders":
        for (_, path), data in files.items():
            write(f"mini/archive/{path}", data)
    elif form == "three zips":
        Path("mini").mkdir()
        for split in OFFICIAL:
            with zipfile.ZipFile(f"mini/{split}.zip", "w") as archive:
                for (part, path), data in files.items():
                    if part == split:
                        archive.writestr(path, data)
    else:
        source = "mini.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for (split, path), data in files.items():
                within = {"zip of splits": f"{split}/", "zip in a folder": "mini-imagenet/"}.get(form, "")
                archive.writestr(f"{within}{path}", data)
    assert proc_images.main(["--source", source]) == 0
    for split, names in OFFICIAL.items():
        loaded = load_split("miniimagenet", "", split, image_size=84, channels=3)
        assert loaded.names == names and loaded.counts.tolist() == [2] * len(names)


def test_a_zip_whose_members_leave_their_folder_is_refused(capsys):
    with zipfile.ZipFile("mini.zip", "w") as archive:
        archive.writestr("../n01532829/1.png", png(0))
    assert proc_images.main(["--source", "mini.zip"]) == 1
    assert "would leave its folder" in capsys.readouterr().err


def test_a_source_that_is_split_already_keeps_its_splits(capsys):
    for split in known.SPLITS:
        for index in range(3):
            for image in range(4):
                write(f"photos/{split}/{split}_{index}/{image}.png", png(index))
    arguments = ["--make_splits", "--source", "photos", "--output", "ready"]
    assert proc_images.main(arguments) == 0
    said = capsys.readouterr().out
    assert "photos is split already, and keeps its train, val and test" in said
    assert "--num_classes=3 --update_batch_size=2 --query_size=2" in said, "the default task does not fit these"
    assert sorted(path.name for path in Path("ready/val").iterdir()) == ["val_0", "val_1", "val_2"]
