"""Going over a meta-batch a few tasks at a time, several such parts side by side.

The maps of a few tasks fit a processor's cache where those of all would not, and a part on every
core, each with single-threaded kernels, is faster than kernels that are split over the cores one
after the other: the maps of few-shot tasks are small.
"""

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from maml.config import Config
from maml.kernels.ops import SMALL_MATRIX
from maml.models.official import Network

# Numbers in the first map of the support sets of a part; measured with 1 MiB of second-level cache a core.
CACHED_MAP = 450_000


def part_size(network: Network, tasks: int, examples: int) -> int:
    """Tasks to compute at once: convolutional ones that fit a cache and feed every core; else, and on a GPU, all.

    Args:
        tasks: of the batch.
        examples: of a task in one forward pass.
    """
    if network.kind != "conv" or tf.config.list_physical_devices("GPU"):
        return tasks
    cached = round(CACHED_MAP / (examples * network.largest_map))
    most = max(1, min(cached, math.ceil(tasks / _cores())))
    return next(size for size in range(most, 0, -1) if tasks % size == 0)


def map_parts(compute: Callable[[Any], Any], batch: Any, size: int, like: Any) -> Any:
    """Computes parts of a batch of tasks, as many side by side as there are cores.

    Args:
        compute: of a part of the batch; returns a structure of tensors.
        batch: `Episodes`, or another structure of tensors with a leading task axis.
        size: tasks of a part, a divisor of those of the batch.
        like: tensors of the structure, shapes and types that `compute` returns.

    Returns:
        The structure that `compute` returns, its tensors with a leading axis [parts].
    """
    if size == tf.nest.flatten(batch)[0].shape[0]:
        return tf.nest.map_structure(lambda tensor: tensor[None], compute(batch))
    parts = tf.nest.map_structure(lambda tensor: tf.reshape(tensor, [-1, size, *tensor.shape[1:]]), batch)
    signature = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), like)
    # Called eagerly, tf.map_fn would have AutoGraph rewrite everything that it calls, which takes seconds.
    compute = tf.autograph.experimental.do_not_convert(compute)
    return tf.map_fn(compute, parts, parallel_iterations=_cores(), fn_output_signature=signature)


def set_up_threads(config: Config) -> None:
    """Leaves every kernel only the cores that the parts of a batch, side by side, do not need.

    The kernels of a small fully connected network do not need a second core either: handing work over
    takes longer than the work.

    Call it at the start of a program; it changes nothing once TensorFlow computes, on a GPU, or
    where TF_NUM_INTRAOP_THREADS is set.
    """
    network = Network.from_config(config)
    small = network.kind == "fc" and network.largest_matrix <= SMALL_MATRIX
    if (
        not (config.convolutional or small)
        or tf.config.list_physical_devices("GPU")
        or "TF_NUM_INTRAOP_THREADS" in os.environ
    ):
        return
    with contextlib.suppress(RuntimeError):  # already computing
        threads = 1 if small else max(1, _cores() // config.meta_batch_size)
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _cores() -> int:
    return os.cpu_count() or 1
