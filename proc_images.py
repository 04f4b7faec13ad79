"""Prepares a data set for training: miniImageNet, others that are known, or your own folder of classes.

    python proc_images.py --source ~/Downloads/mini-imagenet
    python proc_images.py --source ~/Downloads/CUB_200_2011 --output data/cub
    python proc_images.py --make_splits --source photos --output data/photos --splits 0.6,0.2,0.2

The first two recognize the form of what they are given (see data/README.md), check that it is the
whole data set, and write train/, val/ and test/ with a folder of images a class.
The third divides the classes of a folder among the three splits. Interrupted, each goes on
where it stopped when it is run again. The originals are never touched.
"""

import argparse
import os
import sys

from maml import commands
from maml.errors import UserError
from maml.tasks.image_files import MODES
from maml.tasks.images import DEFAULT_DIRS
from maml.tasks.prepare import known, miniimagenet, own
from maml.tasks.prepare.lists import SIZE
from maml.tasks.prepare.pictures import Found
from maml.tasks.prepare.writing import process, write_all

OFFICIAL_QUALITY = 75  # the official script saves with Pillow's default
OWN_QUALITY = 95


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's values."""
    default = DEFAULT_DIRS["miniimagenet"]
    home = os.path.expanduser  # no shell expands ~ behind --source=
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = (
        f"CUB-200-2011, CIFAR-FS, FC100 or tieredImageNet as they are handed out, or miniImageNet: {miniimagenet.FORMS}"
    )
    parser.add_argument("--source", default=default, type=home, help=f"what you have (default {default}): {forms}")
    parser.add_argument("--output", default="", type=home, help=f"folder to write to (for miniImageNet {default})")
    parser.add_argument("--csv_dir", default="", type=home, help="folder of the lists train.csv … (default the source)")
    parser.add_argument(
        "--jpeg_quality",
        type=int,
        default=0,
        help=f"of JPEGs that are resized (default {OFFICIAL_QUALITY}, as the official script, or {OWN_QUALITY})",
    )
    own_data = parser.add_argument_group("your own data")
    own_data.add_argument("--make_splits", action="store_true", help="divide the class folders in --source")
    own_data.add_argument(
        "--splits", default="0.64,0.16,0.2", help="classes of train,val,test: counts, or fractions of all"
    )
    own_data.add_argument("--seed", type=int, default=1, help="of the division")
    own_data.add_argument("--image_size", type=int, default=SIZE, help="height and width in pixels")
    own_data.add_argument("--channels", type=int, default=3, choices=sorted(MODES), help="1: gray, 3: color")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files survive every terminal
    args = parse(arguments)
    try:
        if args.make_splits:
            prepare_own(args)
        else:
            prepare_known(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def prepare_known(args: argparse.Namespace) -> None:
    """Writes a data set that is recognized, or says that it is ready."""
    found = known.find(args.source)
    if found is None:
        return prepare_miniimagenet(args)
    if not args.output:
        raise UserError(f"{args.source}: is {found.form}; name with --output the folder that it is to be prepared in")
    print(f"{args.source}: {found.form}, {len(found.pictures)} images")
    write_all(found, args.output, found.size, 3, args.jpeg_quality or OWN_QUALITY)
    say_how_to_train(args.output, found, own.training_command(args.output, found))
    return None


def prepare_miniimagenet(args: argparse.Namespace) -> None:
    """Writes miniImageNet, or says that it is ready."""
    output = args.output or DEFAULT_DIRS["miniimagenet"]
    found = miniimagenet.find(args.source, [args.csv_dir] if args.csv_dir else [_folder_of(args.source), output])
    print(f"{args.source}: {found.form}, {len(found.pictures)} images")
    quality = args.jpeg_quality or OFFICIAL_QUALITY
    if found.form == "class folders" and _same(args.source, output):
        process(found.pictures, SIZE, 3, quality, lambda target, data: None)
    else:
        write_all(found, output, SIZE, 3, quality)
    train = commands.program("main.py", "--datasource=miniimagenet", f"--data_dir={output}")
    print(f"{output}: ready; train with\n  {train}")


def prepare_own(args: argparse.Namespace) -> None:
    """Divides the classes of a folder among train, val and test."""
    if args.image_size < 1:
        raise UserError(f"--image_size={args.image_size}: must be at least 1")
    found, notes = own.find(args.source, args.output, args.splits, args.seed, args.image_size)
    for note in notes:
        print(note)
    command = own.training_command(args.output, found)  # refuses what cannot be trained before anything is written
    write_all(found, args.output, args.image_size, args.channels, args.jpeg_quality or OWN_QUALITY)
    say_how_to_train(args.output, found, command)


def say_how_to_train(output: str, found: Found, command: str) -> None:
    """Prints what each split got, and the command that trains on it."""
    classes = own.class_sizes(found)
    parts = ", ".join(f"{len(classes[split])} {split}" for split in own.SPLITS)
    print(f"{output}: {parts} classes; train with\n  {command}")


def _folder_of(source: str) -> str:
    return os.path.dirname(source) or "." if os.path.isfile(source) else source


def _same(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


if __name__ == "__main__":
    sys.exit(main())
