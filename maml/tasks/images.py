"""Images of a data set's split, as one uint8 array.

`load_split` reads Omniglot (archives or folders) and folders of classes (miniImageNet, your own
data), and keeps the result prepared on disk.
"""

import contextlib
import functools
import os
import sys
from typing import Any

import numpy as np

from maml import commands
from maml.config.flags import UNSET
from maml.errors import UserError
from maml.tasks import cache
from maml.tasks.class_folders import SPLITS, read_classes, split_folders
from maml.tasks.image_files import MODES, ImageFile, decode, fit, opened, opener
from maml.tasks.omniglot_images import RESIZES, drawing, omniglot_source
from maml.tasks.prepare.writing import prepared_as
from maml.tasks.split import ImageSplit, Source, check_fits, content_of, key_of

DEFAULT_DIRS = {"omniglot": "data/omniglot", "miniimagenet": "data/miniImagenet"}
OWN_DEFAULTS = {"image_size": 84, "channels": 3}
MOST_PIXELS = 1024  # a side


def load_split(
    datasource: str,
    data_dir: str,
    split: str,
    *,
    image_size: int,
    channels: int,
    resize: str = "nearest",
    conventions: str = "maml",
) -> ImageSplit:
    """The images of a split, from the cache if they were prepared before.

    Args:
        datasource: "omniglot", "miniimagenet", or "folder" for your own train/, val/ and test/
            folders of class folders.
        data_dir: its folder; "" for the default.
        split: "train", "val" or "test".
        image_size: height and width in pixels.
        channels: 1 (gray) or 3 (color).
        resize: Omniglot only. "nearest" is what the official code comes to: it asks for LANCZOS,
            which does not exist for 1-bit images. "lanczos" resizes as gray images. Other data
            is always resized with LANCZOS, and only where it has another size.
        conventions: Omniglot only: "maml" or "maml++", by whose official code its characters are split.

    Raises:
        UserError: data is missing or broken.
    """
    if datasource not in (*DEFAULT_DIRS, "folder") or split not in SPLITS or resize not in RESIZES:
        raise UserError(f"no such data: datasource {datasource!r}, split {split!r}, resize {resize!r}")
    if channels not in MODES or image_size < 1 or (datasource == "omniglot" and channels != 1):
        raise UserError(f"{datasource} images cannot have size {image_size} and {channels} channels")
    data_dir = data_dir or DEFAULT_DIRS.get(datasource, "")
    if not data_dir:
        raise UserError("--datasource=folder needs --data_dir, a folder with train/, val/ and test/ in it")
    if datasource == "omniglot":
        source = omniglot_source(data_dir, split, image_size, resize, conventions)
    else:
        source = _class_folders(datasource, data_dir, split, image_size, channels)
        resize = "lanczos"
    own = "" if conventions == "maml" or datasource != "omniglot" else f"-{conventions}"
    places = cache.paths(data_dir, f"{datasource}-{split}-{image_size}x{channels}-{resize}{own}.images")
    return _kept(places, source)


def own_size(data_dir: str) -> tuple[int, int] | None:
    """Size and channels of your own images: as they were prepared, or those of the images themselves.

    None if they have several sizes, are no squares, or cannot be looked at; loading them says why.
    """
    prepared = prepared_as(data_dir)
    if prepared:
        return prepared
    try:
        folders = split_folders(data_dir)
        paths = list(read_classes(folders["train"]).paths.values())
    except (UserError, KeyError):
        return None
    sizes, gray = set(), True
    for path in [path for of_class in paths[:10] for path in of_class[:10]]:
        with contextlib.suppress(Exception), opener(path)() as file, opened(file) as image:
            sizes.add(image.size)
            gray &= image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return (width, 1 if gray else 3) if width == height and width <= MOST_PIXELS else None


def sized(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Flags with the size and channels of your own images, where they were not given; and notes for the user."""
    found = own_size(given["data_dir"]) if given.get("datasource") == "folder" and given.get("data_dir") else None
    if not found:
        return given, []
    there = dict(zip(("image_size", "channels"), found, strict=True))
    added = {name: value for name, value in there.items() if name not in given and value != OWN_DEFAULTS[name]}
    asked = {name: given[name] for name in there if given.get(name, UNSET) not in (UNSET, there[name])}
    notes = []
    if added:
        size, kind = found[0], {1: "gray", 3: "color"}[found[1]]
        notes.append(f"The images in {given['data_dir']} are learned as they are: {size}x{size}, {kind}")
    for name, value in asked.items():
        notes.append(f"--{name}={value}: the images in {given['data_dir']} have {there[name]}, and are converted")
    return added | given, notes


def channel_statistics(split: ImageSplit, channels: int) -> str:
    """Mean and standard deviation of each channel of a split's images, 0 to 1, as `--normalize` takes them."""
    rows = split.images[:: max(1, len(split.images) // 2000)]  # 2000 images tell them to a percent
    pixels = rows.reshape(-1, channels) / 255.0
    mean, deviation = pixels.mean(0), np.maximum(pixels.std(0), 1e-3)
    return "/".join(",".join(f"{value:.4f}" for value in values) for values in (mean, deviation))


def read_images(
    paths: list[str], datasource: str, *, image_size: int, channels: int, resize: str = "nearest"
) -> np.ndarray:
    """Image files, prepared as `load_split` prepares those of a data source: uint8 [n, height, width, channels].

    Omniglot's drawings are expected in ink on paper and come out inverted.

    Args:
        paths: image files, of any format that Pillow knows among those of `image_files.FORMATS`.
        datasource, image_size, channels, resize: see `load_split`.

    Raises:
        UserError: some are unreadable, or there are none.
    """
    if not paths:
        raise UserError("no image files were named; name at least one")
    if datasource == "omniglot":
        convert = functools.partial(drawing, size=image_size, resize=resize)
    else:
        convert = functools.partial(fit, size=image_size, channels=channels)
    files = [ImageFile(path, opener(path)) for path in paths]
    rows = decode(files, convert, image_size * image_size * channels, "images", "replace or remove them")
    return rows.reshape(-1, image_size, image_size, channels)


def _kept(places: list[str], source: Source) -> ImageSplit:
    """The split from the cache, or built and put there."""
    for path in places:
        found = cache.load(path, source.key)
        if found is not None:
            images, facts = found
            counts, names = np.array(facts["counts"], np.int64), tuple(facts["names"])
            return ImageSplit(images, counts, names, facts.get("content") or content_of(images, counts, names))
    known = {"counts": list(source.counts), "names": list(source.names)}
    with cache.room(places, source.shape, known) if source.shape else contextlib.nullcontext() as room:
        if room is None:
            check_fits(source)
        built = source.build(room.images if room else None)
        built = built._replace(content=content_of(built.images, built.counts, built.names))
        facts = {"counts": built.counts.tolist(), "names": list(built.names), "content": built.content}
        written = room.keep(source.key, facts) if room else cache.store(places, source.key, built.images, facts)
    found = cache.load(written, source.key) if written else None
    return built._replace(images=found[0]) if found else built


def _class_folders(datasource: str, data_dir: str, split: str, size: int, channels: int) -> Source:
    """<data_dir>/<split>/<class>/ with images."""
    if datasource == "miniimagenet":
        prepare = commands.program("proc_images.py")
        way_out = f"run `{prepare}` to prepare miniImageNet, or name its folder with --data_dir"
    else:
        prepare = commands.program(
            "proc_images.py", "--make_splits", f"--source={data_dir}", f"--output={data_dir}_split"
        )
        way_out = f"train/, val/ and test/ with a folder a class are needed; `{prepare}` makes them of class folders"
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder; {way_out}")
    folder = split_folders(data_dir).get(split)
    if not folder:
        raise UserError(f"{data_dir}: no folder {split} in it; {way_out}")
    classes = read_classes(folder)
    for note in classes.notes(folder):
        print(f"note: {note}", file=sys.stderr)
    key = key_of((path for paths in classes.paths.values() for path in paths), folder)
    counts = tuple(map(len, classes.paths.values()))
    build = functools.partial(_build_classes, classes.paths, f"{datasource} {split}", size, channels)
    return Source(key, build, (sum(counts), size * size * channels), counts, tuple(classes.paths), folder)


def _build_classes(
    classes: dict[str, list[str]], label: str, size: int, channels: int, rows: np.ndarray | None
) -> ImageSplit:
    images = decode(
        [ImageFile(path, opener(path)) for paths in classes.values() for path in paths],
        functools.partial(fit, size=size, channels=channels),
        size * size * channels,
        label,
        "replace or remove them",
        rows,
    )
    counts = np.array([len(paths) for paths in classes.values()], np.int64)
    return ImageSplit(images, counts, tuple(classes))
