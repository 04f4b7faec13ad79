"""The images of a data set's training split in files of a size that can be carried, and back.

  python benchmarks/gpu/images.py pack data/miniImagenet/train 2 packed
  python images.py unpack images.npy packed0.xz packed1.xz

They stay the JPEG files that they are. `unpack` writes what `maml.data_generator` reads, uint8 [images, pixels], and
prints its SHA-256: another JPEG library may decode other pixels. Needs numpy and Pillow alone.
"""

import argparse
import hashlib
import io
import lzma
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 600  # images that a process decodes in one go


def pack(folder: Path, parts: int, output: str) -> None:
    """Writes the files of all class folders, in order of their names."""
    files = [path for name in sorted(os.listdir(folder)) for path in sorted((folder / name).iterdir())]
    for part, some in enumerate(np.array_split(np.array(files), parts)):
        images = [path.read_bytes() for path in some]
        sizes = np.array([len(images), *map(len, images)], np.int32)
        Path(f"{output}{part}.xz").write_bytes(lzma.compress(sizes.tobytes() + b"".join(images), preset=1))


def read(path: Path) -> list[bytes]:
    """The files in a packed one."""
    data = lzma.decompress(path.read_bytes())
    count = int(np.frombuffer(data, np.int32, 1)[0])
    ends = np.cumsum(np.frombuffer(data, np.int32, count, 4)) + 4 * (count + 1)
    return [data[start:end] for start, end in zip([4 * (count + 1), *ends[:-1]], ends, strict=True)]


def decode(files: list[bytes]) -> np.ndarray:
    """Their pixels, uint8 [files, pixels]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).ravel() for file in files])


def unpack(output: Path, packed: list[Path]) -> None:
    """Writes the pixels of all images; the file appears when it is whole."""
    with ProcessPoolExecutor() as pool:
        files = [file for part in pool.map(read, packed) for file in part]
        images = np.concatenate(list(pool.map(decode, [files[i : i + BLOCK] for i in range(0, len(files), BLOCK)])))
    unfinished = output.with_suffix(".unfinished.npy")
    np.save(unfinished, images)
    os.replace(unfinished, output)
    print(images.shape, hashlib.sha256(images.tobytes()).hexdigest())


def main() -> None:
    """Packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing, unpacking = commands.add_parser("pack"), commands.add_parser("unpack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("parts", type=int)
    packing.add_argument("output", help="beginning of the files' names")
    unpacking.add_argument("output", type=Path)
    unpacking.add_argument("packed", nargs="+", type=Path)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.folder, args.parts, args.output)
    else:
        unpack(args.output, args.packed)


if __name__ == "__main__":
    main()
