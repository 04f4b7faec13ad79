"""Prepares miniImageNet, or one's own folder of classes, for training.

    python proc_images.py --source ~/Downloads/mini-imagenet
    python proc_images.py --make_splits --source photos --output data/photos --splits 0.6,0.2,0.2

The first recognises the form of what it is given (see data/README.md), checks that it is the
whole data set, and writes data/miniImagenet/{train,val,test}/<class>/ with 84 x 84 RGB images.
The second divides the classes of a folder among the three splits. Interrupted, either goes on
where it stopped when it is run again. The originals are never touched.
"""

import argparse
import hashlib
import io
import os
import random
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

from maml.errors import UserError
from maml.tasks import miniimagenet
from maml.tasks.image_files import (
    MODES,
    ImageFile,
    class_images,
    fit,
    for_each,
    listed,
    opened,
    opener,
    reason_of,
    visible,
)
from maml.tasks.images import DEFAULT_DIRS, SPLITS
from maml.tasks.miniimagenet import Found, Picture

OFFICIAL_QUALITY = 75  # the official script saves with Pillow's default
OWN_QUALITY = 95
_MARK = ".prepared"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's values."""
    default = DEFAULT_DIRS["miniimagenet"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=default, help=f"what you have (default {default}): {miniimagenet.FORMS}")
    parser.add_argument("--output", default="", help=f"folder to write to (default {default})")
    parser.add_argument("--csv_dir", default="", help="folder of train.csv, val.csv and test.csv (default the source)")
    parser.add_argument(
        "--jpeg_quality",
        type=int,
        default=0,
        help=f"of JPEGs that are resized (default {OFFICIAL_QUALITY}, as the official script; own data {OWN_QUALITY})",
    )
    own = parser.add_argument_group("one's own data")
    own.add_argument("--make_splits", action="store_true", help="divide the class folders in --source")
    own.add_argument("--splits", default="0.64,0.16,0.2", help="classes of train,val,test: counts, or fractions of all")
    own.add_argument("--seed", type=int, default=1, help="of the division")
    own.add_argument("--image_size", type=int, default=miniimagenet.SIZE, help="height and width in pixels")
    own.add_argument("--channels", type=int, default=3, choices=sorted(MODES), help="1: grey, 3: colour")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; its exit code."""
    args = parse(arguments)
    try:
        if args.make_splits:
            prepare_own(args)
        else:
            prepare_miniimagenet(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def prepare_miniimagenet(args: argparse.Namespace) -> None:
    """Writes miniImageNet, or says that it is ready."""
    output = args.output or DEFAULT_DIRS["miniimagenet"]
    found = miniimagenet.find(args.source, [args.csv_dir] if args.csv_dir else [_folder_of(args.source), output])
    print(f"{args.source}: {found.form}, {len(found.pictures)} images")
    quality = args.jpeg_quality or OFFICIAL_QUALITY
    if found.form == "class folders" and _same(args.source, output):
        process(found.pictures, miniimagenet.SIZE, 3, quality, lambda target, data: None)
    else:
        write_all(found, output, miniimagenet.SIZE, 3, quality)
    print(f"{output}: ready; train with --datasource=miniimagenet --data_dir={output}")


def prepare_own(args: argparse.Namespace) -> None:
    """Divides the classes of a folder among train, val and test."""
    places = [os.path.realpath(place) for place in (args.source, args.output)]
    if not args.output or os.path.commonpath(places) == places[0]:
        raise UserError("--make_splits needs --output, a folder outside --source")
    if not os.path.isdir(args.source):
        raise UserError(f"{args.source}: no such folder; name the folder of your class folders with --source")
    if args.image_size < 1:
        raise UserError(f"--image_size={args.image_size}: must be at least 1")
    classes = class_images(args.source)
    names = divide(sorted(classes), args.splits, args.seed)
    pictures = [
        Picture(f"{split}/{name}/{os.path.basename(path)}", ImageFile(path, opener(path)))
        for split in SPLITS
        for name in names[split]
        for path in classes[name]
    ]
    quality = args.jpeg_quality or OWN_QUALITY
    write_all(Found("own", pictures), args.output, args.image_size, args.channels, quality)
    parts = ", ".join(f"{len(names[split])} {split}" for split in SPLITS)
    print(f"{args.output}: {parts} classes; train with --datasource=folder --data_dir={args.output}")


def divide(names: list[str], splits: str, seed: int) -> dict[str, list[str]]:
    """The classes of train, val and test, drawn with `seed`.

    Args:
        names: all classes.
        splits: three counts ("10,2,3") or three fractions that add up to 1 ("0.6,0.2,0.2").
        seed: the same one divides the same classes alike.

    Raises:
        UserError: the numbers make no sense, or leave a split empty.
    """
    try:
        shares = [float(part) for part in splits.split(",")]
    except ValueError:
        shares = []
    fractions = "." in splits
    sensible = len(shares) == len(SPLITS) and all(0 < share < float("inf") for share in shares)
    if not sensible or (fractions and abs(sum(shares) - 1) > 1e-6):
        raise UserError(f"--splits={splits}: must be three counts, or three fractions that add up to 1")
    ends = np.cumsum(shares)
    if fractions:
        ends = np.round(ends * len(names))
    counts = np.diff(ends.astype(int), prepend=0)
    if ends[-1] > len(names) or counts.min() < 1:
        raise UserError(f"--splits={splits}: {len(names)} classes give splits of {counts.tolist()}; change the numbers")
    shuffled = random.Random(seed).sample(names, len(names))
    return {
        split: sorted(shuffled[end - count : end])
        for split, end, count in zip(SPLITS, np.cumsum(counts).tolist(), counts.tolist(), strict=True)
    }


def write_all(found: Found, output: str, size: int, channels: int, quality: int) -> None:
    """Writes all pictures that are not there yet.

    Raises:
        UserError: the output holds other images or cannot be written, or images are unreadable.
    """
    _claim(output, found, f"{size} {channels} {quality}")
    for folder in {os.path.dirname(picture.target) for picture in found.pictures}:
        os.makedirs(os.path.join(output, folder), exist_ok=True)
    left = [picture for picture in found.pictures if not _complete(os.path.join(output, picture.target))]
    process(left, size, channels, quality, lambda target, data: _write(os.path.join(output, target), data))


def process(
    pictures: list[Picture], size: int, channels: int, quality: int, keep: Callable[[str, bytes], None]
) -> None:
    """Reads and resizes pictures, and gives each (target, bytes) to `keep`.

    Raises:
        UserError: images are unreadable; all of them are named first.
    """
    unreadable: list[str] = []

    def work(index: int) -> None:
        target, source = pictures[index]
        try:
            data = encoded(source, target, size, channels, quality)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            name = source.name if isinstance(source, ImageFile) else target
            unreadable.append(f"{name} ({reason_of(error)})")
        else:
            keep(target, data)

    for_each(work, len(pictures), "images", parallel=True)
    if unreadable:
        for line in sorted(unreadable):
            print(line, file=sys.stderr)
        raise UserError(
            f"{len(unreadable)} of {len(pictures)} images are unreadable (named above); "
            "replace them and run the same command again"
        )


def encoded(source: ImageFile | np.ndarray, target: str, size: int, channels: int, quality: int) -> bytes:
    """The bytes of the prepared image; those of the source where nothing has to change."""
    if isinstance(source, ImageFile):
        with source.open() as file:
            data = file.read()
        with opened(io.BytesIO(data)) as image:
            image.load()
            if image.size == (size, size) and image.mode == MODES[channels]:
                return data
            pixels = fit(image, size, channels)
    else:
        pixels = source
    buffer = io.BytesIO()
    kind = "PNG" if target.lower().endswith(".png") else "JPEG"
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _claim(output: str, found: Found, settings: str) -> None:
    """Marks the output as prepared from this source with these settings.

    Raises:
        UserError: it holds images of something else, which would be mixed with these.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for picture in found.pictures:
        digest.update(os.fsencode(picture.target) + b"\0")
    line = f"{found.form} {settings} {digest.hexdigest()}\n"
    mark = os.path.join(output, _MARK)
    try:
        os.makedirs(output, exist_ok=True)
        if os.path.isfile(mark):
            with open(mark, encoding="utf-8") as file:
                if file.read() == line:
                    return
        present = [split for split in SPLITS if os.path.isdir(os.path.join(output, split))]
        if any(any(visible(os.path.join(output, split))) for split in present):
            raise UserError(
                f"{output} holds {listed(present)}, which were prepared otherwise; remove them or name another --output"
            )
        _write(mark, line.encode())
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another --output") from error


def _complete(path: str) -> bool:
    """Whether a picture was written; files appear whole."""
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


def _write(path: str, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise UserError(f"{path} could not be written ({error.strerror}); run the same command to go on") from error


def _folder_of(source: str) -> str:
    return os.path.dirname(source) or "." if os.path.isfile(source) else source


def _same(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


if __name__ == "__main__":
    sys.exit(main())
