"""Convolution and pooling with a task axis.

Activations are [tasks, examples, height, width, channels]. Kernels are shared by all tasks
([3, 3, in, out]) or each task's own ([tasks, 3, 3, in, out]).
"""

import tensorflow as tf


def over_examples(op, inp: tf.Tensor) -> tf.Tensor:
    """Applies an image op on [batch, height, width, channels] to every task's examples at once."""
    tasks, examples = inp.shape[0], inp.shape[1]
    out = op(tf.reshape(inp, [tasks * examples, *inp.shape[2:]]))
    return tf.reshape(out, [tasks, examples, *out.shape[1:]])


def conv2d(inp: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """SAME convolution of every task's examples with the shared kernel or the task's own.

    Args:
        inp: [tasks, examples, height, width, in].
        kernel: [3, 3, in, out] or [tasks, 3, 3, in, out].
        stride: in both directions.

    Returns:
        [tasks, examples, ceil(height / stride), ceil(width / stride), out].
    """
    if len(kernel.shape) == 4:
        return over_examples(lambda images: tf.nn.conv2d(images, kernel, stride, "SAME"), inp)
    return tf.stack(
        [
            tf.nn.conv2d(task_images, task_kernel, stride, "SAME")
            for task_images, task_kernel in zip(tf.unstack(inp), tf.unstack(kernel), strict=True)
        ]
    )


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID: [tasks, examples, h, w, c] → [tasks, examples, h // 2, w // 2, c]."""
    return over_examples(lambda images: tf.nn.max_pool2d(images, 2, 2, "VALID"), inp)
