"""Images in a zip, read in place."""

import functools
import os
import zipfile

from maml.errors import UserError, one_line
from maml.tasks.class_folders import SPLIT_NAMES
from maml.tasks.image_files import ImageFile, check_member, hidden, is_image, open_member

_MOST_IMAGE_BYTES = 1 << 26


def zip_images(path: str) -> list[tuple[str, ImageFile]]:
    """(name in the archive, image) of all images of a zip, sorted by name.

    Raises:
        UserError: it is no readable zip, a member would leave its folder, or there are no images.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory of members raises nearly anything
        raise UserError(
            f"{path} is not a readable zip archive ({one_line(error)}); get it again or unpack it"
        ) from error
    images = []
    for info in archive.infolist():
        check_member(path, info.filename)
        if is_image(info.filename) and not any(map(hidden, info.filename.split("/"))):
            image = ImageFile(
                f"{path}/{info.filename}", functools.partial(open_member, archive, info, _MOST_IMAGE_BYTES)
            )
            images.append((info.filename, image))
    if not images:
        raise UserError(f"{path}: no images in it")
    return sorted(images)


def split_of(path: str, name: str) -> str:
    """The split that a folder around a member's class folder names, or the zip itself; "" if none does."""
    words = [*name.lower().split("/")[:-2], os.path.basename(path).lower().removesuffix(".zip")]
    return next((split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)), "")
