"""The operations of the networks for many tasks at once, exact to second order.

The tasks of a batch are the groups of grouped convolutions: inside the convolutional network
activations are [examples, height, width, tasks · channels], task-major. One kernel call then
serves all tasks, and a statistic of one channel over [examples, height, width] is a statistic
of one task.

Every operation can be differentiated twice; the convolutional network's no more often: a
meta-gradient needs no third derivative. `tests/test_central_differences.py` proves it in float64.
"""

import functools
import math

import tensorflow as tf

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
fused = functools.partial(tf.function, jit_compile=True, autograph=False)

NOBODY = 9  # larger than any position in a window
MOST_NEIGHBOURS = 10  # in a partial sum; measured

# Up to so many examples and numbers in the result, XLA sums outer products faster than it multiplies matrices.
FEW_EXAMPLES = 20
SMALL_MATRIX = 10_000


def for_each_task(weight: tf.Tensor, tasks: int) -> tf.Tensor:
    """`tasks` times the same weight, [tasks, …].

    XLA fuses a plain sum of the tasks' gradients with the sum over examples that makes them, into a
    loop that takes ten times as long as both; a sum of matrices that are named one by one it does not.
    """
    if len(weight.shape) > 2:  # convolutions' kernels
        return tf.broadcast_to(weight, [tasks, *weight.shape])

    @tf.custom_gradient
    def repeat(weight):
        return tf.broadcast_to(weight, [tasks, *weight.shape]), lambda dout: tf.add_n(tf.unstack(dout))

    return repeat(weight)


@tf.custom_gradient
def product(inp: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The product of every task's examples with the task's own matrix.

    It, its gradient by the input and its gradient by the matrix are one another's derivatives, so
    that each is written once, in the way that is fastest for few examples.

    Args:
        inp: [tasks, examples, in].
        weight: [tasks, in, out].

    Returns:
        [tasks, examples, out].
    """
    return tf.matmul(inp, weight), lambda dout: (_product_back(dout, weight), _outer(inp, dout))


@tf.custom_gradient
def _product_back(dout, weight):
    """The gradient of `product` by its input, [tasks, examples, in]."""
    return tf.matmul(dout, weight, transpose_b=True), lambda u: (product(u, weight), _outer(u, dout))


@tf.custom_gradient
def _outer(inp, dout):
    """The gradient of `product` by its matrix, the sum of the examples' outer products: [tasks, in, out]."""
    examples, fan_in, fan_out = inp.shape[1], inp.shape[2], dout.shape[2]
    if examples is not None and examples <= FEW_EXAMPLES and max(fan_in, fan_out) < fan_in * fan_out <= SMALL_MATRIX:
        total = tf.reduce_sum(inp[:, :, :, None] * dout[:, :, None], 1)
    else:
        total = tf.matmul(inp, dout, transpose_a=True)
    return total, lambda u: (_product_back(dout, u), product(inp, u))


def to_groups(inp: tf.Tensor) -> tf.Tensor:
    """[tasks, examples, height, width, channels] → [examples, height, width, tasks · channels]."""
    tasks, _, height, width, channels = inp.shape
    return tf.reshape(tf.transpose(inp, [1, 2, 3, 0, 4]), [-1, height, width, tasks * channels])


def from_groups(inp: tf.Tensor, tasks: int) -> tf.Tensor:
    """The inverse of `to_groups`."""
    _, height, width, channels = inp.shape
    inp = tf.reshape(inp, [-1, height, width, tasks, channels // tasks])
    return tf.transpose(inp, [3, 0, 1, 2, 4])


def conv2d(inp: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """SAME convolution of every task's examples with the task's own kernel.

    Args:
        inp: [examples, height, width, tasks · in].
        kernel: [tasks, 3, 3, in, out].
        stride: in both directions.

    Returns:
        [examples, ceil(height / stride), ceil(width / stride), tasks · out].
    """
    tasks, *size, filters = kernel.shape
    if inp.dtype != tf.float64 and _has_grouped_gradients(inp.dtype):
        kernel = tf.reshape(tf.transpose(kernel, [1, 2, 3, 0, 4]), [*size, tasks * filters])
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    pairs = zip(tf.split(inp, tasks, -1), tf.unstack(kernel), strict=True)
    return tf.concat([tf.nn.conv2d(images, own, stride, "SAME") for images, own in pairs], -1)


@functools.cache
def _has_grouped_gradients(dtype: tf.DType) -> bool:
    """Whether this machine can differentiate a grouped convolution; on a CPU, oneDNN can."""

    @tf.function(autograph=False)
    def probe():
        inp, kernel = tf.ones([1, 4, 4, 4], dtype), tf.ones([3, 3, 2, 4], dtype)
        with tf.GradientTape() as tape:
            tape.watch((inp, kernel))
            out = tf.nn.conv2d(inp, kernel, 1, "SAME")
        return tape.gradient(out, (inp, kernel))

    try:
        with tf.init_scope():
            probe()
    except (tf.errors.OpError, ValueError):
        return False
    return True


def standardize_relu_pool(inp: tf.Tensor, shift: tf.Tensor, epsilon: float, window: int) -> tf.Tensor:
    """Max pooling of relu((x − mean) / √(variance + ε) + shift), mean and variance of each channel.

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves first
    derivatives right and second derivatives wrong. Here both are closed forms: tapes would make
    many more passes over maps that do not fit a cache.

    With y the standardized x and r = (variance + ε)^−½, let P select each window's largest entry
    where the ReLU passes it, and Pᵀ put it back. For q = Pᵀ dout, a = ⟨q⟩ and b = ⟨q y⟩, the means
    of every channel, the first derivative is dx = r (q − a − b y); `second` differentiates that.

    Args:
        inp: [examples, height, width, channels].
        shift: [channels].
        epsilon: ε.
        window: height and width of the pooling's windows, VALID; 1: no pooling.

    Returns:
        [examples, height // window, width // window, channels].
    """

    @tf.custom_gradient
    def op(x, shift):
        rows = math.prod(x.shape[:3])
        mean = _sum(x) / rows
        r = tf.math.rsqrt(_sum(_squared_distance(x, mean)) / rows + tf.constant(epsilon, x.dtype))
        out, winner = _forward(x, mean, r, shift, window)

        def gradient(dout):
            @tf.custom_gradient
            def first(dout, x):
                a, b = (_sum(sums) / rows for sums in _passed(dout, winner, out, shift))
                dx = _first_pass(dout, winner, x, mean, r, a, b, window)

                def second(u, u_shift):
                    c, d = (_sum(sums) / rows for sums in _with_y(u, x, mean, r))
                    ddout, e_terms = _derivative_along(u, u_shift, dout, winner, out, shift, r, c, d, window)
                    e = _sum(e_terms) / rows
                    terms = (r * r * d, 2 * r * r * b * d - r * e, r * r * (a * d + b * c), r * r * b)
                    return ddout, _second_pass(dout, winner, x, u, mean, r, terms, window)

                return (dx, rows * a), second

            return first(dout, x)

        return out, gradient

    return op(inp, shift)


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID.

    Not tf.nn.max_pool2d, whose second derivative XLA rounds to 8 bits.
    """
    return functools.reduce(tf.maximum, _windows(inp, 2))


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Sum of every channel, [channels]; a product with ones is the fastest on a CPU."""
    x = tf.reshape(x, [-1, x.shape[-1]])
    return tf.reshape(tf.ones([1, x.shape[0]], x.dtype) @ x, [x.shape[1]])


def _partial_sums(x: tf.Tensor) -> tf.Tensor:
    """Sums of every channel over a few neighbours, [n, channels], for `_sum` to finish.

    XLA is fast at these, and what they are sums of need not be written; at longer ones it is slow.
    """
    rows = math.prod(x.shape[:-1])
    few = next(count for count in range(MOST_NEIGHBOURS, 0, -1) if rows % count == 0)
    return tf.reduce_sum(tf.reshape(x, [rows // few, few, x.shape[-1]]), 1)


@fused
def _squared_distance(x, mean):
    """Partial sums of (x − mean)²."""
    return _partial_sums(tf.square(x - mean))


@fused
def _forward(x, mean, r, shift, window):
    """The output, and which member of its window each entry was, int8; `NOBODY` where the ReLU is shut."""
    members = _windows((x - mean) * r, window)
    top, winner = members[0], tf.zeros(members[0].shape, tf.int32)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, position, winner)  # the first of equals, as in tf.nn.max_pool2d
        top = tf.maximum(member, top)
    out = tf.nn.relu(top + shift)
    return out, tf.cast(tf.where(out > 0, winner, NOBODY), tf.int8)


@fused
def _passed(dout, winner, out, shift):
    """Partial sums of what of dout the ReLU passes, and of its product with y."""
    q = tf.where(winner < NOBODY, dout, tf.zeros([], dout.dtype))
    return _partial_sums(q), _partial_sums(q * (out - shift))


@fused
def _with_y(u, x, mean, r):
    """Partial sums of u and of u y."""
    return _partial_sums(u), _partial_sums(u * ((x - mean) * r))


@fused
def _first_pass(dout, winner, x, mean, r, a, b, window):
    return r * (_spread(dout, winner, x.shape, window) - a - b * ((x - mean) * r))


@fused
def _derivative_along(u, u_shift, dout, winner, out, shift, r, c, d, window):
    """The cotangent of dout, P (r (u − c − d y) + u_shift), and partial sums of its product with dout.

    The product is without the shift.
    """
    zero = tf.zeros([], u.dtype)
    selected = zero
    for position, member in enumerate(_windows(u, window)):
        selected = tf.where(winner == position, member, selected)
    along = tf.where(winner < NOBODY, r * (selected - c - d * (out - shift)), zero)
    return along + tf.where(winner < NOBODY, u_shift, zero), _partial_sums(along * dout)


@fused
def _second_pass(dout, winner, x, u, mean, r, terms, window):
    of_q, of_y, constant, of_u = terms
    return of_y * ((x - mean) * r) + constant - of_q * _spread(dout, winner, x.shape, window) - of_u * u


def _windows(x: tf.Tensor, window: int) -> list[tf.Tensor]:
    """The members of every window, [n, height // window, width // window, c] each; a rest is dropped."""
    if window == 1:
        return [x]
    height, width = x.shape[1] // window, x.shape[2] // window
    x = tf.reshape(x[:, : window * height, : window * width], [-1, height, window, width, window, x.shape[3]])
    return [x[:, :, i, :, j] for i in range(window) for j in range(window)]


def _spread(q: tf.Tensor, winner: tf.Tensor, shape: tf.TensorShape, window: int) -> tf.Tensor:
    """Pᵀ q: q at each window's winner, zero elsewhere."""
    examples, height, width, channels = q.shape
    zero = tf.zeros([], q.dtype)
    if window == 1:
        return tf.where(winner < NOBODY, q, zero)
    position = tf.reshape(tf.constant([*range(window**2)], tf.int8), [1, 1, window, 1, window, 1])
    whole = tf.where(winner[:, :, None, :, None] == position, q[:, :, None, :, None], zero)
    whole = tf.reshape(whole, [examples, window * height, window * width, channels])
    return tf.pad(whole, [[0, 0], [0, shape[1] - window * height], [0, shape[2] - window * width], [0, 0]])
