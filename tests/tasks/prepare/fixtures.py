"""A miniImageNet of 5 classes × 4 images, in each of its forms, and the program that prepares it."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

import proc_images
from maml.tasks.images import load_split
from tests.image_fixtures import noisy

# A miniImageNet of 5 classes x 4 images stands in for the 100 x 600.
SMALL = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112", "n01981276")}
PER_CLASS = 4
POSITIONS = (1, 3, 4, 6)  # the listed images among the six of a class
NUMBERS = (2, 10, 9, 100, 1000, 77)  # ILSVRC2012's numbers of these six, in no order
IN_ORDER = sorted(NUMBERS)


def pixels(label: str, number: int, size: int = 84) -> np.ndarray:
    """The image of a number, another one for each class."""
    rng = np.random.default_rng([int(label[1:]), number])
    return noisy(rng.integers(0, 256, (4, 4, 3), np.uint8), size, rng)


def jpeg(label: str, number: int, size: int = 84) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(label, number, size)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def listed_name(label: str, position: int) -> str:
    return f"{label}{position:08d}.jpg"


def write_lists(folder: Path, end: str = "\n", start: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in SMALL.items():
        rows = [f"{listed_name(label, position)},{label}" for label in labels for position in POSITIONS]
        text = start + end.join(["filename,label", *rows]) + end
        (folder / f"{split}.csv").write_bytes(text.encode())


def write_images(folder: Path, size: int = 84) -> None:
    """Ravi & Larochelle's form."""
    write_lists(folder)
    (folder / "images").mkdir()
    for label in sum(SMALL.values(), ()):
        for position in POSITIONS:
            (folder / "images" / listed_name(label, position)).write_bytes(jpeg(label, position, size))


def ilsvrc_class(label: str, size: int = 120) -> dict[str, bytes]:
    """The six images of a class by ILSVRC2012's names."""
    return {f"{label}_{number}.JPEG": jpeg(label, number, size) for number in NUMBERS}


def write_ilsvrc_folders(folder: Path) -> None:
    for label in (*sum(SMALL.values(), ()), "n99999999"):
        (folder / label).mkdir(parents=True)
        for name, data in ilsvrc_class(label).items():
            (folder / label / name).write_bytes(data)


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ilsvrc_tars() -> dict[str, bytes]:
    return {f"{label}.tar": tar_of(ilsvrc_class(label)) for label in sum(SMALL.values(), ())}


def pickled(split: str, labels: tuple[str, ...] | None = None) -> dict:
    """What a cached pickle of a split holds."""
    labels = labels or SMALL[split]
    images = [pixels(label, row) for row in range(PER_CLASS) for label in labels]
    rows = {label: [len(labels) * row + place for row in range(PER_CLASS)] for place, label in enumerate(labels)}
    return {"image_data": np.stack(images), "class_dict": rows}


def write_pickles(folder: Path, val: str = "val", protocol: int = pickle.HIGHEST_PROTOCOL) -> None:
    folder.mkdir(exist_ok=True)
    for split in SMALL:
        part = val if split == "val" else split
        with open(folder / f"mini-imagenet-cache-{part}.pkl", "wb") as file:
            pickle.dump(pickled(split), file, protocol)


def run(*arguments) -> int:
    return proc_images.main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """The one line with which the program ends."""
    capsys.readouterr()
    assert run(*arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def result(folder: Path = Path("data/miniImagenet")) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*/*"))}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below a folder with its time of change."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def check_result(output: Path = Path("data/miniImagenet")) -> None:
    for split, labels in SMALL.items():
        loaded = load_split("miniimagenet", str(output), split, image_size=84, channels=3)
        assert loaded.names == labels and loaded.counts.tolist() == [PER_CLASS] * len(labels)


def ready(folder: Path, size: int = 84) -> None:
    for split, labels in SMALL.items():
        for label in labels:
            (folder / split / label).mkdir(parents=True)
            for position in POSITIONS:
                (folder / split / label / listed_name(label, position)).write_bytes(jpeg(label, position, size))
