"""Batch-norm, ReLU and 2×2 max pooling of large feature maps in one operation, exact to second order.

Plain form: `plain`. Fast form: `_closed_form`, the same function with both derivatives written out. Tapes would
make many more passes over maps that do not fit a cache: a miniImageNet update takes 2.3 times as long (measured on an
AMD EPYC with AVX2). `tests/kernels/test_batch_norm.py` proves that both forms agree to second order.
"""

import functools
import math

import tensorflow as tf

from maml.kernels.pooling import max_pool, windows

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
_fused = functools.partial(tf.function, jit_compile=True, autograph=False)

_MOST_NEIGHBOURS = 10  # in a partial sum; measured


def batch_norm_relu_pool(
    inp: tf.Tensor, shift: tf.Tensor, epsilon: float, reference: int | tf.Tensor | None = None
) -> tf.Tensor:
    """Max pooling of relu((x − mean) / √(variance + ε) + shift), 2×2, VALID; mean and variance of each channel.

    Args:
        inp: x, [examples, height, width, channels].
        shift: [channels].
        epsilon: ε.
        reference: how many examples, the first ones, the statistics are taken from; None: all.

    Returns:
        [examples, height // 2, width // 2, channels].
    """
    # Eagerly, every other number of examples would be compiled anew, for one use.
    if reference is None and inp.shape.is_fully_defined() and not tf.executing_eagerly():
        return _closed_form(inp, shift, epsilon)
    return plain(inp, shift, epsilon, reference)


def plain(inp: tf.Tensor, shift: tf.Tensor, epsilon: float, reference: int | tf.Tensor | None = None) -> tf.Tensor:
    """The plain form; arguments as of `batch_norm_relu_pool`."""
    return max_pool(tf.nn.relu(standardize(inp, [0, 1, 2], epsilon, reference) + shift))


def standardize(inp: tf.Tensor, axes: list[int], epsilon: float, reference: int | tf.Tensor | None = None) -> tf.Tensor:
    """(x − mean) / √(variance + ε) with the statistics over `axes`, of the first `reference` examples or of all.

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves first
    derivatives right and second derivatives wrong; the means here are plain.
    """
    whose = inp if reference is None else inp[:reference]
    mean = tf.reduce_mean(whose, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(whose - mean), axes, keepdims=True)
    return (inp - mean) * tf.math.rsqrt(variance + epsilon)


def _closed_form(inp: tf.Tensor, shift: tf.Tensor, epsilon: float) -> tf.Tensor:
    """The fast form.

    With y the standardized x and r = (variance + ε)^−½, let P select each window's largest entry where the
    ReLU passes it, and Pᵀ put it back. For q = Pᵀ dout and the means a = ⟨q⟩, b = ⟨q y⟩ over a channel,

        dx = r (q − a − b y).

    For a cotangent u of dx, with c = ⟨u⟩, d = ⟨u y⟩ and that of dout, ddout = P r (u − c − d y), e = ⟨dout ddout⟩,

        ddx = (2 r² b d − r e) y + r² (a d + b c) − r² (d q + b u).

    Which entry is the largest is found anew wherever x is read: reading is what takes the time.
    """
    rows = math.prod(inp.shape[:3])

    @tf.custom_gradient
    def forward(x, shift):
        mean, variance = _moments(x, rows)
        r = tf.math.rsqrt(variance + epsilon)
        out = _forward(x, mean, r, shift)

        def backward(dout):
            @tf.custom_gradient
            def first(dout, x):
                a, b = _means(_sums_of_q(dout, out, shift), rows)

                def second(u, u_shift):
                    c, d = _means(_sums_of_u(u, x, mean, r), rows)
                    ddout = _ddout(u, u_shift, x, out, shift, r, c, d)
                    [e] = _means(_sums_of_ddout(ddout, u_shift, dout, out), rows)
                    return ddout, _ddx(u, dout, out, x, mean, r, a, b, c, d, e)

                return (_dx(dout, out, x, mean, r, a, b), rows * a), second

            return first(dout, x)

        return out, backward

    return forward(inp, shift)


def _moments(x: tf.Tensor, rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of every channel, [channels] each, in one pass over x.

    ⟨(x − p)²⟩ − ⟨x − p⟩² rounds like the variance itself as long as p is near the mean. The mean of the first of n
    examples is no further from it than √(n − 1) standard deviations.
    """
    near = _sum(tf.reshape(x[:1], [-1, x.shape[-1]])) / math.prod(x.shape[1:3])
    distance, square = _means(_sums_of_distance(x, near), rows)
    return near + distance, tf.nn.relu(square - tf.square(distance))


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Sum over the first axis, [n, m] → [m]; a product with ones is the fastest on a CPU."""
    return tf.reshape(tf.ones([1, x.shape[0]], x.dtype) @ x, [-1])


def _means(partial: tf.Tensor, rows: int) -> list[tf.Tensor]:
    """The means over `rows` neighbours of what `_partial_sums` began to sum, [channels] each."""
    count, maps, channels = partial.shape
    return tf.split(_sum(tf.reshape(partial, [count, maps * channels])) / rows, maps)


def _partial_sums(*maps: tf.Tensor) -> tf.Tensor:
    """Sums of every map and channel over a few neighbours, [n, maps, channels], for `_means` to finish.

    XLA is fast at these, and what they are sums of need not be written; at longer ones it is slow.
    Several maps are one result, so that what they are made of is read once.
    """
    rows, channels = math.prod(maps[0].shape[:-1]), maps[0].shape[-1]
    few = next(count for count in range(_MOST_NEIGHBOURS, 0, -1) if rows % count == 0)
    return tf.reduce_sum(tf.stack([tf.reshape(values, [rows // few, few, channels]) for values in maps], 2), 1)


@_fused
def _sums_of_distance(x, near):
    return _partial_sums(x - near, tf.square(x - near))


@_fused
def _forward(x, mean, r, shift):
    return tf.nn.relu((functools.reduce(tf.maximum, windows(x)) - mean) * r + shift)


@_fused
def _sums_of_q(dout, out, shift):
    """Of what of dout the ReLU passes, and of its product with y."""
    q = _where_open(out, dout)
    return _partial_sums(q, q * (out - shift))


@_fused
def _sums_of_u(u, x, mean, r):
    return _partial_sums(u, u * ((x - mean) * r))


@_fused
def _sums_of_ddout(ddout, u_shift, dout, out):
    """Of the product of dout and its cotangent, without the shift's part."""
    return _partial_sums(_where_open(out, ddout - u_shift) * dout)


@_fused
def _dx(dout, out, x, mean, r, a, b):
    return r * (_put_back(_where_open(out, dout), x) - a - b * ((x - mean) * r))


@_fused
def _ddout(u, u_shift, x, out, shift, r, c, d):
    """P r (u − c − d y), and what comes by the gradient of the shift."""
    members = windows(u)
    selected, winner = members[0], _winner(x)
    for position, member in enumerate(members[1:], start=1):
        selected = tf.where(winner == position, member, selected)
    return _where_open(out, r * (selected - c - d * (out - shift)) + u_shift)


@_fused
def _ddx(u, dout, out, x, mean, r, a, b, c, d, e):
    q, y = _put_back(_where_open(out, dout), x), (x - mean) * r
    return (2 * r * r * b * d - r * e) * y + r * r * (a * d + b * c) - r * r * (d * q + b * u)


def _where_open(out: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The value where the ReLU passed something, zero elsewhere."""
    return tf.where(out > 0, value, tf.zeros([], value.dtype))


def _winner(x: tf.Tensor) -> tf.Tensor:
    """Which member of its window is the largest, [examples, height // 2, width // 2, channels]."""
    members = windows(x)
    top, winner = members[0], tf.zeros(members[0].shape, tf.int32)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, position, winner)  # the first of equals, as in tf.nn.max_pool2d
        top = tf.maximum(member, top)
    return winner


def _put_back(q: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Pᵀ of what the ReLU passes: q at the largest entry of each of x's windows, zero elsewhere."""
    examples, height, width, channels = q.shape
    position = tf.reshape(tf.range(4), [2, 1, 2, 1])
    here = _winner(x)[:, :, None, :, None] == position
    whole = tf.where(here, q[:, :, None, :, None], tf.zeros([], q.dtype))
    whole = tf.reshape(whole, [examples, 2 * height, 2 * width, channels])
    return tf.pad(whole, [[0, 0], [0, x.shape[1] - 2 * height], [0, x.shape[2] - 2 * width], [0, 0]])
