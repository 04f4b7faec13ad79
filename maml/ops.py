"""The operations of the convolutional network for many tasks at once, exact to second order.

The tasks of a batch are the groups of grouped convolutions: inside the network activations are
[examples, height, width, tasks · channels], task-major. One kernel call then serves all tasks,
and a statistic of one channel over [examples, height, width] is a statistic of one task.

Every operation can be differentiated twice, and no more often: a meta-gradient needs no third
derivative. `tests/test_central_differences.py` proves it in float64.
"""

import functools

import tensorflow as tf

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
fused = functools.partial(tf.function, jit_compile=True, autograph=False)


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
    if inp.dtype == tf.float32 and _has_grouped_gradients():
        kernel = tf.reshape(tf.transpose(kernel, [1, 2, 3, 0, 4]), [*size, tasks * filters])
        return tf.nn.conv2d(inp, kernel, stride, "SAME")
    pairs = zip(tf.split(inp, tasks, -1), tf.unstack(kernel), strict=True)
    return tf.concat([tf.nn.conv2d(images, own, stride, "SAME") for images, own in pairs], -1)


@functools.cache
def _has_grouped_gradients() -> bool:
    """Whether this machine can differentiate a float32 grouped convolution; on a CPU, oneDNN can."""

    @tf.function(autograph=False)
    def probe():
        inp, kernel = tf.ones([1, 4, 4, 4]), tf.ones([3, 3, 2, 4])
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


def standardize(inp: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x − mean) / √(variance + ε) of every channel, over [examples, height, width].

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves
    first derivatives right and second derivatives wrong; the means here are plain.

    Args:
        inp: [examples, height, width, channels].
        epsilon: ε.
    """
    centred = inp - tf.reduce_mean(inp, [0, 1, 2])
    variance = tf.reduce_mean(tf.square(centred), [0, 1, 2])
    return centred * tf.math.rsqrt(variance + epsilon)


def standardize_and_pool(inp: tf.Tensor, epsilon: float) -> tf.Tensor:
    """2×2 VALID max pooling of `standardize`, with most sums over the pooled map, a quarter as large.

    With P the selection of each window's largest entry (Pᵀ puts a value back there), the
    derivative is P J and its transpose J Pᵀ; the formulas are those of `standardize` for u = Pᵀq.

    Args:
        inp: [examples, height, width, channels].
        epsilon: of the variance.

    Returns:
        [examples, height // 2, width // 2, channels].
    """
    if inp.shape[0] is None:  # an exported model: any number of examples, and first derivatives only
        return max_pool(standardize(inp, epsilon))

    @tf.custom_gradient
    def op(x):
        y, r = _standardized(x, epsilon)
        top, winner = _pool(y)
        share = top.shape.num_elements() / y.shape.num_elements()  # ⟨Pᵀq⟩ is this share of the mean of q

        def gradient(dtop):
            @tf.custom_gradient
            def first(dtop, x):
                a, b = share * _mean(dtop), share * _mean(dtop * top)
                dx = _first_pass(dtop, winner, y, r, -r * b, -r * a)

                def second(u):
                    c, d = _mean(u), _mean(_multiply(u, y))
                    du = r * (_select(u, winner) - c - d * top)  # P J u
                    e, rr = share * _mean(du * dtop), r * r
                    own = 2 * rr * b * d - r * e
                    return du, _second_pass(dtop, winner, y, u, -rr * d, own, rr * (d * a + b * c), -rr * b)

                return dx, second

            return first(dtop, x)

        return top, gradient

    return op(inp)


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID.

    Not tf.nn.max_pool2d, whose second derivative XLA rounds to 8 bits.
    """
    return functools.reduce(tf.maximum, _windows(inp, inp.shape[1] // 2, inp.shape[2] // 2))


def _mean(x: tf.Tensor) -> tf.Tensor:
    """Mean of every channel, [channels]; a product with ones is the fastest such sum on a CPU."""
    x = tf.reshape(x, [-1, x.shape[-1]])
    return tf.reshape(tf.ones([1, x.shape[0]], x.dtype) @ x, [x.shape[1]]) / x.shape[0]


def _standardized(x: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The standardized x and r = (variance + ε)^−½, [channels]."""
    mean = _mean(x)
    r = tf.math.rsqrt(_mean(_squared_distance(x, mean)) + tf.constant(epsilon, x.dtype))
    return _scaled_distance(x, mean, r), r


@fused
def _squared_distance(x, mean):
    return tf.square(x - mean)


@fused
def _scaled_distance(x, mean, scale):
    return (x - mean) * scale


@fused
def _multiply(a, b):
    return a * b


def _windows(x: tf.Tensor, height: int, width: int) -> list[tf.Tensor]:
    """The four members of every 2×2 window, [n, height, width, c] each; an odd last row or column is dropped."""
    x = tf.reshape(x[:, : 2 * height, : 2 * width], [-1, height, 2, width, 2, x.shape[3]])
    return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


@fused
def _pool(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """P y and which member of its window each entry was, int8; the first of equals, as in tf.nn.max_pool2d."""
    members = _windows(y, y.shape[1] // 2, y.shape[2] // 2)
    top, winner = members[0], tf.zeros(members[0].shape, tf.int32)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, position, winner)
        top = tf.maximum(member, top)
    return top, tf.cast(winner, tf.int8)


@fused
def _select(u: tf.Tensor, winner: tf.Tensor) -> tf.Tensor:
    """P u: each window's winning member."""
    first, second, third, fourth = _windows(u, *winner.shape[1:3])
    return tf.where(winner < 2, tf.where(winner == 0, first, second), tf.where(winner == 2, third, fourth))


def _spread(q: tf.Tensor, winner: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Pᵀ q: q at each window's winner, zero elsewhere."""
    examples, height, width, channels = q.shape
    position = tf.reshape(tf.constant([0, 1, 2, 3], tf.int8), [1, 1, 2, 1, 2, 1])
    here = winner[:, :, None, :, None] == position
    whole = tf.where(here, q[:, :, None, :, None], tf.zeros([], q.dtype))
    whole = tf.reshape(whole, [examples, 2 * height, 2 * width, channels])
    return tf.pad(whole, [[0, 0], [0, shape[1] - 2 * height], [0, shape[2] - 2 * width], [0, 0]])


@fused
def _first_pass(q, winner, y, scale, a, b):
    return _spread(scale * q, winner, y.shape) + a * y + b


@fused
def _second_pass(q, winner, y, u, scale, a, b, c):
    return _spread(scale * q, winner, y.shape) + a * y + b + c * u
