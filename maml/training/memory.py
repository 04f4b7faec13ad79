"""What a setting needs at least, so that one that cannot fit is refused before anything is allocated."""

import math

from maml.config import Config
from maml.errors import UserError
from maml.machine import physical_memory

HIDDEN = (256, 128, 64, 64)


def check_memory(config: Config) -> None:
    """Raises UserError if an update (in a test: a block of tasks) cannot fit into the machine's memory."""
    needed, there = least_memory(config), physical_memory()
    if there is not None and needed > there:
        sizes = ("num_classes", "update_batch_size", "meta_batch_size", "num_updates", "num_filters")
        given = " ".join(f"--{name}={getattr(config, name)}" for name in sizes)
        raise UserError(
            f"{given}: needs at least {needed / 2**30:,.0f} GiB of memory, and this machine has {there / 2**30:,.0f}; "
            "lower one of them"
        )


def least_memory(config: Config) -> int:
    """Bytes that must exist at once: a batch of tasks, and fast weights, first activations and their gradients.

    For an exact meta-gradient these stay for every inner step. A convolutional network computes a few
    tasks at a time, at least one. It is a lower bound: measured updates of the sinusoid take 1.3 to
    1.8 times as much.
    """
    tasks = config.meta_batch_size // config.accumulate if config.train else config.evaluation_block
    classes, shots, queries = config.task_size("train" if config.train else "test")
    classes = classes if config.classification else 1
    support, query = classes * shots, classes * queries
    size, channels = config.image_shape
    if config.convolutional:
        filters, pixels = config.num_filters, size**2 * channels
        activations = (size if config.max_pool else math.ceil(size / 2)) ** 2 * filters
        weights = 9 * filters * (channels + 3 * filters)
    elif config.classification:
        pixels, activations = size**2 * channels, sum(HIDDEN)
        weights = pixels * HIDDEN[0]
    else:
        pixels, activations, weights = 1, 80, 40 * 40
    kept = 1 if config.stop_grad or config.recompute or not config.train else config.num_updates
    computed = (support * kept + query) * activations + weights * kept
    computed *= (1 if config.convolutional else tasks) * (2 if config.train else 1)
    number = 8 if config.dtype == "float64" else 2 if config.bfloat16 else 4
    return number * (tasks * (support + query) * pixels + computed)
