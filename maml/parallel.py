"""Where the task axis is added: a function of one task becomes one of a batch of tasks.

Everything else in this package computes with one task at a time.

Means over tasks are taken in float64. A float32 number has 24 significant bits and a float64 number 53, so a sum of 2^k
float32 numbers is exact if their exponents differ by no more than 29 − k: it is the same in any order, and however the
tasks are divided over replicas.
"""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from maml import machine
from maml.machine import cores
from maml.models.protocol import Weights

if TYPE_CHECKING:
    from maml.config import Config

# A fully connected network whose largest matrix has no more elements gains nothing by a second thread a kernel.
SMALL_MATRIX = 10_000
_OFF_HALFWAY = 1 + 2.0**-40  # see `rounded`


def map_tasks(of_task: Callable[[Any], Any], batch: Any, like: Any, side_by_side: bool = False) -> Any:
    """`of_task` of every task of a batch.

    Args:
        of_task: takes a structure like `batch` without its leading axis, and returns a structure of tensors.
        batch: `Episodes`, or another structure of tensors with a leading task axis.
        like: tensors or `tf.TensorSpec`s of the structure, shapes and types that `of_task` returns.
        side_by_side: compute all tasks in the same operations, by tf.vectorized_map: for small dense layers, whose
            operations take longer to start than to compute. Otherwise one task after the other, as many at once as
            there are cores: the feature maps of a task fit a processor's cache where those of all would not, and
            tf.vectorized_map has no convolution whose filters differ from task to task.

    Returns:
        What `of_task` returns, with a leading task axis.
    """
    # AutoGraph would rewrite everything that is called, which takes seconds.
    of_task = tf.autograph.experimental.do_not_convert(of_task)
    if side_by_side and not tf.executing_eagerly():
        return tf.vectorized_map(of_task, batch, fallback_to_while_loop=False)
    signature = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), like)
    return tf.map_fn(of_task, batch, parallel_iterations=cores(), fn_output_signature=signature)


def mean_gradient(
    task_loss: Callable[[Weights, Any], tf.Tensor], weights: Weights, batch: Any, side_by_side: bool = False
) -> tuple[tf.Tensor, Weights]:
    """The mean loss of a batch of tasks, [], and its gradient by the weights, in float64; see `rounded`.

    Every task's gradient is taken by itself, and then their mean: only one task's intermediate results are kept.

    Args:
        task_loss: of weights and one task, [].
        batch, side_by_side: see `map_tasks`.
    """

    def of_task(arguments: tuple[Weights, Any]) -> tuple[tf.Tensor, Weights]:
        weights, task = arguments
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = task_loss(weights, task)
        return loss, dense(tape.gradient(loss, weights, unconnected_gradients="zero"))

    tasks = tf.nest.flatten(batch)[0].shape[0]
    like = (tf.TensorSpec([], next(iter(weights.values())).dtype), weights)
    if side_by_side and not tf.executing_eagerly():
        copies = {name: tf.broadcast_to(weight, [tasks, *weight.shape]) for name, weight in weights.items()}
        values = map_tasks(of_task, (copies, batch), like, side_by_side)
        # Named one by one: XLA would fuse a plain sum with the sums over examples before it, into a slow loop.
        sums = tf.nest.map_structure(lambda tensor: tf.add_n(exact(tf.unstack(tensor))), values)
    else:
        sums = sum_over_tasks(lambda task: of_task((weights, task)), batch, like)
    return tf.nest.map_structure(lambda total: total / tasks, sums)


def sum_over_tasks(of_task: Callable[[Any], Any], batch: Any, like: Any) -> Any:
    """The sum over a batch of what `of_task` returns, in float64, as many tasks at once as there are cores.

    Args:
        of_task, batch, like: see `map_tasks`.
    """
    of_task = tf.autograph.experimental.do_not_convert(of_task)
    tasks = tf.nest.flatten(batch)[0].shape[0]

    def add(number: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
        values = of_task(tf.nest.map_structure(lambda tensor: tensor[number], batch))
        return number + 1, tf.nest.map_structure(tf.add, sums, exact(values))

    zeros = tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape, tf.float64), like)
    start = (tf.constant(0), zeros)
    return tf.while_loop(lambda number, _: number < tasks, add, start, parallel_iterations=cores())[1]


def exact(values: Any) -> Any:
    """A structure of tensors as float64, whose sums over tasks do not depend on their order."""
    return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float64), values)


def rounded(found: tuple[tf.Tensor, Weights], weights: Weights) -> tuple[tf.Tensor, Weights]:
    """A mean loss and its gradient by the weights, in the types of these.

    The last of a mean's 53 bits depend on whether the sum over the tasks was divided at once, or the sums over parts
    and then their mean. They would decide to which of two float32 numbers one halfway between them is rounded. With
    few tasks that is not rare, so the means leave this place first, by 2^-40 of themselves.
    """
    loss, gradients = found

    def to(dtype: tf.DType, mean: tf.Tensor) -> tf.Tensor:
        return tf.cast(mean if dtype == mean.dtype else mean * _OFF_HALFWAY, dtype)

    dtype = next(iter(weights.values())).dtype
    return to(dtype, loss), {name: to(weights[name].dtype, slope) for name, slope in gradients.items()}


def dense(gradients: Weights) -> Weights:
    """Gradients as plain tensors; an embedding's comes as the rows that were looked up."""
    return {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items()}


def set_up_threads(config: "Config") -> None:
    """Leaves every kernel only the cores that the tasks of a batch, side by side, do not need.

    The kernels of a small fully connected network do not need a second core either: handing work over
    takes longer than the work.

    Call it at the start of a program; it changes nothing once TensorFlow computes, on a GPU, or
    where TF_NUM_INTRAOP_THREADS is set.
    """
    from maml.models.official import Network

    network = Network.from_config(config.replace(normalize=""))
    small = network.kind == "fc" and network.largest_matrix <= SMALL_MATRIX
    if not (config.convolutional or small) or machine.on_gpu() or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # already computing
        threads = 1 if small else max(1, cores() // config.meta_batch_size)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
