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
    Nothing is kept but the input and the output: which entry is the largest is found anew wherever
    the input is read, because reading is what takes the time.

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
        mean, variance = _moments(x)
        r = tf.math.rsqrt(variance + tf.constant(epsilon, x.dtype))
        out = _forward(x, mean, r, shift, window)

        def gradient(dout):
            @tf.custom_gradient
            def first(dout, x):
                a, b = _means(_passed(dout, out, shift), rows)
                dx = _first_pass(dout, out, x, mean, r, a, b, window)

                def second(u, u_shift):
                    c, d = _means(_with_y(u, x, mean, r), rows)
                    ddout = _derivative_along(u, u_shift, x, out, shift, r, c, d, window)
                    [e] = _means(_along_terms(ddout, u_shift, dout, out), rows)
                    terms = (r * r * d, 2 * r * r * b * d - r * e, r * r * (a * d + b * c), r * r * b)
                    return ddout, _second_pass(dout, out, x, u, mean, r, terms, window)

                return (dx, rows * a), second

            return first(dout, x)

        return out, gradient

    return op(inp, shift)


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID.

    Not tf.nn.max_pool2d, whose second derivative XLA rounds to 8 bits.
    """
    return functools.reduce(tf.maximum, _windows(inp, 2))


def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of every channel, [channels] each, in one pass over x.

    ⟨(x − p)²⟩ − ⟨x − p⟩² rounds like the variance itself as long as p is near the mean. The mean of the first of n
    examples is no further from it than √(n − 1) standard deviations.
    """
    rows = math.prod(x.shape[:3])
    near = _sum(x[:1]) / math.prod(x.shape[1:3])
    distance, square = _means(_distances(x, near), rows)
    return near + distance, tf.nn.relu(square - tf.square(distance))


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Sum of every channel, [channels]; a product with ones is the fastest on a CPU."""
    x = tf.reshape(x, [-1, x.shape[-1]])
    return tf.reshape(tf.ones([1, x.shape[0]], x.dtype) @ x, [x.shape[1]])


def _means(partial: tf.Tensor, rows: int) -> list[tf.Tensor]:
    """The means over `rows` neighbours of the maps whose sums `_partial_sums` began, [channels] each."""
    count, maps, channels = partial.shape
    sums = _sum(tf.reshape(partial, [count, maps * channels]))
    return tf.unstack(tf.reshape(sums / rows, [maps, channels]))


def _partial_sums(*maps: tf.Tensor) -> tf.Tensor:
    """Sums of every map and channel over a few neighbours, [n, maps, channels], for `_means` to finish.

    XLA is fast at these, and what they are sums of need not be written; at longer ones it is slow.
    Several maps are one result, so that what they are made of is read once.
    """
    rows, channels = math.prod(maps[0].shape[:-1]), maps[0].shape[-1]
    few = next(count for count in range(MOST_NEIGHBOURS, 0, -1) if rows % count == 0)
    shape = [rows // few, few, 1, channels]
    return tf.reduce_sum(tf.concat([tf.reshape(numbers, shape) for numbers in maps], 2), 1)


@fused
def _distances(x, near):
    """Partial sums of x − near and of its square."""
    distance = x - near
    return _partial_sums(distance, tf.square(distance))


@fused
def _forward(x, mean, r, shift, window):
    top = functools.reduce(tf.maximum, _windows(x, window))
    return tf.nn.relu((top - mean) * r + shift)


@fused
def _passed(dout, out, shift):
    """Partial sums of what of dout the ReLU passes, and of its product with y."""
    q = _where_open(out, dout)
    return _partial_sums(q, q * (out - shift))


@fused
def _with_y(u, x, mean, r):
    """Partial sums of u and of u y."""
    return _partial_sums(u, u * ((x - mean) * r))


@fused
def _first_pass(dout, out, x, mean, r, a, b, window):
    return r * (_spread(_where_open(out, dout), x, window) - a - b * ((x - mean) * r))


@fused
def _derivative_along(u, u_shift, x, out, shift, r, c, d, window):
    """The cotangent of dout, P (r (u − c − d y) + u_shift)."""
    members = _windows(u, window)
    selected, winner = members[0], _winner(x, window)
    for position, member in enumerate(members[1:], start=1):
        selected = tf.where(winner == position, member, selected)
    return _where_open(out, r * (selected - c - d * (out - shift)) + u_shift)


@fused
def _along_terms(ddout, u_shift, dout, out):
    """Partial sums of the product of dout and its cotangent, without the shift."""
    return _partial_sums(_where_open(out, ddout - u_shift) * dout)


@fused
def _second_pass(dout, out, x, u, mean, r, terms, window):
    of_q, of_y, constant, of_u = terms
    q = _spread(_where_open(out, dout), x, window)
    return of_y * ((x - mean) * r) + constant - of_q * q - of_u * u


def _where_open(out: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The value where the ReLU passed something, zero elsewhere."""
    return tf.where(out > 0, value, tf.zeros([], value.dtype))


def _windows(x: tf.Tensor, window: int) -> list[tf.Tensor]:
    """The members of every window, [n, height // window, width // window, c] each; a rest is dropped."""
    if window == 1:
        return [x]
    height, width = x.shape[1] // window, x.shape[2] // window
    x = tf.reshape(x[:, : window * height, : window * width], [-1, height, window, width, window, x.shape[3]])
    return [x[:, :, i, :, j] for i in range(window) for j in range(window)]


def _winner(x: tf.Tensor, window: int) -> tf.Tensor:
    """Which member of its window is the largest, [n, height // window, width // window, c]."""
    members = _windows(x, window)
    top, winner = members[0], tf.zeros(members[0].shape, tf.int32)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, position, winner)  # the first of equals, as in tf.nn.max_pool2d
        top = tf.maximum(member, top)
    return winner


def _spread(q: tf.Tensor, x: tf.Tensor, window: int) -> tf.Tensor:
    """Pᵀ of what the ReLU passes: q at the largest entry of each of x's windows, zero elsewhere."""
    if window == 1:
        return q
    examples, height, width, channels = q.shape
    position = tf.reshape(tf.range(window**2), [1, 1, window, 1, window, 1])
    here = _winner(x, window)[:, :, None, :, None] == position
    whole = tf.where(here, q[:, :, None, :, None], tf.zeros([], q.dtype))
    whole = tf.reshape(whole, [examples, window * height, window * width, channels])
    return tf.pad(whole, [[0, 0], [0, x.shape[1] - window * height], [0, x.shape[2] - window * width], [0, 0]])
