"""miniImageNet in the forms that people have it, each as a list of images to prepare.

The data set is 100 classes of ImageNet x 600 images, split 64 / 16 / 20 by Ravi & Larochelle
(ICLR 2017). Their train.csv, val.csv and test.csv (columns filename, label) name the images like
n0153282900000005.jpg: the class n01532829 and the number 5. The number is not that of a file of
ImageNet. It counts, from 1, the class's files n01532829_<number>.JPEG of ILSVRC2012 in the order
of their numbers (n01532829_99 before n01532829_100). Its authors never wrote that down; the
public scripts that rebuild the set agree on it, and the lists fit: their numbers run from 1 to
1300, the size of ILSVRC2012's full classes.
"""

import os

from maml.errors import UserError
from maml.tasks.class_folders import read_classes, split_folders
from maml.tasks.image_files import ImageFile, is_image, listed, opener, visible
from maml.tasks.prepare import ilsvrc, lists, pickles
from maml.tasks.prepare.pictures import Found, Picture, prepared_name
from maml.tasks.prepare.zips import split_of, zip_images

FORMS = (
    "images/ with train.csv, val.csv and test.csv; ILSVRC2012's training folders or tar with these lists; "
    "mini-imagenet-cache-{train,val,test}.pkl; or the 100 class folders, with or without train/, val/ and test/ around "
    "them, also in a zip or in train.zip, val.zip and test.zip"
)


def find(source: str, csv_dirs: list[str]) -> Found:
    """Recognizes the form of `source` and lists its images.

    Args:
        source: a folder, a zip, or ILSVRC2012's training tar.
        csv_dirs: where train.csv, val.csv and test.csv may lie, the preferred place first.

    Raises:
        UserError: nothing is recognized, or it is not the whole of miniImageNet and nothing else.
    """
    if os.path.isfile(source):
        return _of_file(source, csv_dirs)
    if not os.path.isdir(source):
        raise UserError(f"{source}: no such folder; name with --source what you have: {FORMS}")
    paths = pickles.found_in(source)
    if paths:
        return Found("cached pickles", pickles.pictures_of(paths))
    images = os.path.join(source, "images")
    if os.path.isdir(images):
        return Found("images/ and lists", _from_images(images, lists.read_lists(csv_dirs)))
    tar = os.path.join(source, ilsvrc.TAR)
    if os.path.isfile(tar):
        return _of_file(tar, csv_dirs)
    zips = [entry.path for entry in visible(source)[1] if entry.name in ("train.zip", "val.zip", "test.zip")]
    if zips:
        return Found("zips", _from_zips(zips))
    found = _ready(source) or _of_ilsvrc(source, csv_dirs)
    if found:
        return found
    if set(split_folders(source)) == set(lists.CLASSES):
        return Found("class folders", _from_class_folders(source))
    folders, files = visible(source)
    if len(folders) == 1 and not files:  # what an archive was unpacked to
        return find(folders[0].path, csv_dirs)
    names = [entry.name for entry in folders + files]
    raise UserError(f"{source}: holds {listed(names) or 'nothing'}, and one of these is needed: {FORMS}")


def _of_file(source: str, csv_dirs: list[str]) -> Found:
    if source.lower().endswith(".zip"):
        return Found("zip", _from_zips([source]))
    if source.endswith(".tar"):
        listed_rows = lists.read_lists(csv_dirs)
        return Found("ILSVRC2012's tar", ilsvrc.from_ilsvrc(source, ilsvrc.tar_classes(source), listed_rows))
    raise UserError(f"{source} is a file; name the folder it lies in: {FORMS}")


def _official() -> list[str]:
    return [name for names in lists.CLASSES.values() for name in names]


def _of_ilsvrc(source: str, csv_dirs: list[str]) -> Found | None:
    # The folder train/ of ready class folders has classes of ImageNet, too, but none of the test classes.
    ready = set(split_folders(source)) == set(lists.CLASSES)
    for name in ilsvrc.FOLDERS:
        folder = os.path.join(source, name) if name else source
        classes = ilsvrc.folder_classes(folder)
        if any(label in classes for label in (lists.CLASSES["test"] if ready else _official())):
            pictures = ilsvrc.from_ilsvrc(folder, classes, lists.read_lists(csv_dirs))
            return Found("ILSVRC2012's folders", pictures)
    return None


def _ready(source: str) -> Found | None:
    """The official classes side by side, each with its 600 images: the split is known, no list is needed."""
    there = {entry.name: entry.path for entry in visible(source)[0]}
    if not set(_official()) <= set(there):
        return None
    files = {name: _images(there[name]) for name in _official()}
    if any(len(paths) != lists.PER_CLASS for paths in files.values()):
        return None  # ILSVRC2012's whole classes
    return Found("the class folders", _pictures_of(files))


def _images(folder: str) -> list[ImageFile]:
    return [ImageFile(entry.path, opener(entry.path)) for entry in visible(folder)[1] if is_image(entry.name)]


def _pictures_of(files: dict[str, list[ImageFile]]) -> list[Picture]:
    return [
        Picture(f"{split}/{name}/{prepared_name(file.name)}", file)
        for split, names in lists.CLASSES.items()
        for name in names
        for file in files[name]
    ]


def _from_zips(paths: list[str]) -> list[Picture]:
    """Class folders in one zip or several; a split's name around them, or the zip's own, must be the official one."""
    counts: dict[str, dict[str, int]] = {split: {} for split in lists.CLASSES}
    official = {name: split for split, names in lists.CLASSES.items() for name in names}
    files: dict[str, list[ImageFile]] = {}
    for path in paths:
        for name, file in zip_images(path):
            label = name.split("/")[-2] if "/" in name else ""
            split = split_of(path, name) or official.get(label, "train")
            counts[split][label] = counts[split].get(label, 0) + 1
            files.setdefault(label, []).append(file)
    lists.check_complete(counts, " and ".join(paths))
    return _pictures_of(files)


def _from_images(folder: str, rows_by_split: dict[str, list[lists.Listed]]) -> list[Picture]:
    """Ravi & Larochelle's own images, named as in their lists."""
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries}
    missing = [row.name for rows in rows_by_split.values() for row in rows if row.name not in present]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of the listed images are missing: {listed(missing)}; add them")

    def source(row: lists.Listed) -> ImageFile:
        path = os.path.join(folder, row.name)
        return ImageFile(path, opener(path))

    return lists.listed_pictures(rows_by_split, source)


def _from_class_folders(folder: str) -> list[Picture]:
    classes = {split: read_classes(path).paths for split, path in split_folders(folder).items()}
    counts = {split: {name: len(paths) for name, paths in found.items()} for split, found in classes.items()}
    lists.check_complete(counts, folder)
    files = {
        name: [ImageFile(path, opener(path)) for path in paths]
        for found in classes.values()
        for name, paths in found.items()
    }
    return _pictures_of(files)
