"""The settings that are measured: the commands of the paper, and data to run them without files."""

import dataclasses
from typing import Any

import numpy as np

from maml.config import Config
from maml.data_generator import DataGenerator
from maml.models.official import Network
from maml.tasks.split import ImageSplit

OMNIGLOT = {"datasource": "omniglot"}
# Five steps at the paper's 0.01 from fresh weights amplify float32's rounding to percents of the loss, and two
# right programs would seem to disagree. With a smaller rate they can be compared; the cost is the same.
MINIIMAGENET = {"datasource": "miniimagenet", "num_updates": 5, "update_lr": 0.0005}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A command of the paper, but for the inner rate of miniImageNet.

    title: for the table.
    flags: of the command.
    classes, images: of the data set's training split, and images of a class.
    window: iterations over which the end-to-end rate is measured; 0: not measured.
    """

    title: str
    flags: dict[str, Any]
    classes: int = 0
    images: int = 0
    window: int = 0

    @property
    def config(self) -> Config:
        """The flags with the defaults of their data source."""
        return Config.from_flags(self.flags)


SETTINGS = {
    "sinusoid": Setting("sinusoid 10-shot (25 tasks, 1 step)", {"norm": "None", "update_batch_size": 10}, window=5000),
    "omniglot_5w1s": Setting(
        "Omniglot 5-way 1-shot (32 tasks, 1 step, 64 filters)",
        OMNIGLOT | {"meta_batch_size": 32, "update_batch_size": 1, "update_lr": 0.4},
        classes=1100,
        images=20,
        window=100,
    ),
    "omniglot_20w1s": Setting(
        "Omniglot 20-way 1-shot (16 tasks, 5 steps, 64 filters)",
        OMNIGLOT
        | {"meta_batch_size": 16, "update_batch_size": 1, "num_classes": 20, "update_lr": 0.1, "num_updates": 5},
        classes=1100,
        images=20,
    ),
    "miniimagenet_5w1s": Setting(
        "miniImageNet 5-way 1-shot (4 tasks, 5 steps, 32 filters, 15 queries)",
        MINIIMAGENET | {"update_batch_size": 1},
        classes=64,
        images=600,
        window=100,
    ),
    "miniimagenet_5w5s": Setting(
        "miniImageNet 5-way 5-shot (4 tasks, 5 steps, 32 filters, 15 queries)",
        MINIIMAGENET | {"update_batch_size": 5},
        classes=64,
        images=600,
    ),
}
TOY = {
    "toy": Setting(
        "a toy, to try the program (Omniglot 2-way 1-shot, 2 tasks, 1 step, 2 filters)",
        OMNIGLOT
        | {"meta_batch_size": 2, "update_batch_size": 1, "num_classes": 2, "num_filters": 2, "test_num_updates": 1},
        classes=4,
        images=4,
        window=4,
    ),
}
ALL = SETTINGS | TOY


def random_data(config: Config, classes: int = 0, images: int = 0, splits=("train",)) -> DataGenerator:
    """A generator over noise in the place of image files; the sinusoid's is the real one.

    Args:
        classes, images: of a split, and images of a class; 0: as few as a task needs.
    """
    if not config.classification:
        return DataGenerator(config, splits)
    classes = classes or config.num_classes
    images = images or config.update_batch_size + config.query_per_class
    pixels = Network.from_config(config).dim_input
    noise = np.frombuffer(np.random.default_rng(0).bytes(classes * images * pixels), np.uint8)
    split = ImageSplit(noise.reshape(-1, pixels), np.full(classes, images), ("",) * classes)
    return DataGenerator(config, splits, load=lambda *_, **__: split)
