"""Batch-norm's standardization with 2×2 max pooling behind it, of large feature maps, exact to second order.

Plain form: `plain`. Fast form: `_closed_form`, the same function with both derivatives written out. Tapes would
make many more passes over maps that do not fit a cache: a miniImageNet update takes 2.3 times as long (measured on an
AMD EPYC with AVX2). `tests/kernels/test_batch_norm.py` proves that both forms agree to second order.
"""

import functools
import math

import tensorflow as tf

from maml import machine
from maml.kernels.pooling import max_pool, windows

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
_fused = functools.partial(tf.function, jit_compile=True, autograph=False)

_MOST_NEIGHBORS = 10  # in a partial sum; measured


def batch_norm_pool(
    inp: tf.Tensor, epsilon: float, scale: tf.Tensor | None = None, reference: int | tf.Tensor | None = None
) -> tf.Tensor:
    """2×2 pooling, VALID, of y = (x − mean) / √(variance + ε); mean and variance of each channel.

    Max pooling of scale · y + shift, and of any increasing function of it, is that of what this returns: the largest
    entry of each window, or the smallest one in channels with a scale below zero.

    Args:
        inp: x, [examples, height, width, channels].
        epsilon: ε.
        scale: [channels], or None: above zero. Its size does not matter here.
        reference: how many examples, the first ones, the statistics are taken from; None: all.

    Returns:
        [examples, height // 2, width // 2, channels].
    """
    sign = None if scale is None else tf.stop_gradient(tf.where(scale < 0, -tf.ones_like(scale), tf.ones_like(scale)))
    # On a GPU XLA compiles the whole update, and fuses the plain form. Eagerly, every other number of examples would
    # be compiled anew, for one use.
    if reference is None and inp.shape.is_fully_defined() and not (tf.executing_eagerly() or machine.on_gpu()):
        return _closed_form(inp, epsilon, sign)
    return plain(inp, epsilon, sign, reference)


def plain(
    inp: tf.Tensor, epsilon: float, sign: tf.Tensor | None = None, reference: int | tf.Tensor | None = None
) -> tf.Tensor:
    """The plain form; `sign` is 1, or −1 for the channels whose smallest entries are taken."""
    standard = standardize(inp, [0, 1, 2], epsilon, reference)
    return max_pool(standard) if sign is None else sign * max_pool(sign * standard)


def standardize(inp: tf.Tensor, axes: list[int], epsilon: float, reference: int | tf.Tensor | None = None) -> tf.Tensor:
    """(x − mean) / √(variance + ε) with the statistics over `axes`, of the first `reference` examples or of all.

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves first
    derivatives right and second derivatives wrong; the means here are plain.
    """
    whose = inp if reference is None else inp[:reference]
    mean = tf.reduce_mean(whose, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(whose - mean), axes, keepdims=True)
    return (inp - mean) * tf.math.rsqrt(variance + epsilon)


def _closed_form(inp: tf.Tensor, epsilon: float, sign: tf.Tensor | None = None) -> tf.Tensor:
    """The fast form.

    With y the standardized x and r = (variance + ε)^−½, let P select each window's entry, and Pᵀ put it back. For
    q = Pᵀ dout and the means a = ⟨q⟩, b = ⟨q y⟩ over a channel,

        dx = r (q − a − b y).

    For a cotangent u of dx, with c = ⟨u⟩, d = ⟨u y⟩ and that of dout, ddout = P r (u − c − d y), e = ⟨dout ddout⟩,

        ddx = (2 r² b d − r e) y + r² (a d + b c) − r² (d q + b u).

    Which entry is selected is found anew wherever x is read: reading is what takes the time.
    """
    rows = math.prod(inp.shape[:3])
    sign = tf.ones(inp.shape[-1:], inp.dtype) if sign is None else sign

    @tf.custom_gradient
    def forward(x):
        mean, variance = _moments(x, rows)
        r = tf.math.rsqrt(variance + epsilon)
        out = _forward(x, mean, r, sign)

        def backward(dout):
            @tf.custom_gradient
            def first(dout, x):
                a, b = _means(_sums_of_q(dout, out), rows)

                def second(u):
                    c, d = _means(_sums_of_u(u, x, mean, r), rows)
                    ddout = _ddout(u, x, out, sign, r, c, d)
                    [e] = _means(_sums_of_product(ddout, dout), rows)
                    return ddout, _ddx(u, dout, x, mean, sign, r, a, b, c, d, e)

                return _dx(dout, x, mean, sign, r, a, b), second

            return first(dout, x)

        return out, backward

    return forward(inp)


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
    """The means over `rows` neighbors of what `_partial_sums` began to sum, [channels] each."""
    count, maps, channels = partial.shape
    return tf.split(_sum(tf.reshape(partial, [count, maps * channels])) / rows, maps)


def _partial_sums(*maps: tf.Tensor) -> tf.Tensor:
    """Sums of every map and channel over a few neighbors, [n, maps, channels], for `_means` to finish.

    XLA is fast at these, and what they are sums of need not be written; at longer ones it is slow.
    Several maps are one result, so that what they are made of is read once.
    """
    rows, channels = math.prod(maps[0].shape[:-1]), maps[0].shape[-1]
    few = next(count for count in range(_MOST_NEIGHBORS, 0, -1) if rows % count == 0)
    return tf.reduce_sum(tf.stack([tf.reshape(values, [rows // few, few, channels]) for values in maps], 2), 1)


@_fused
def _sums_of_distance(x, near):
    return _partial_sums(x - near, tf.square(x - near))


@_fused
def _forward(x, mean, r, sign):
    return (sign * functools.reduce(tf.maximum, windows(sign * x)) - mean) * r


@_fused
def _sums_of_q(dout, out):
    """Of q and q y, which are zero but where the windows' entries come from."""
    return _partial_sums(dout, dout * out)


@_fused
def _sums_of_u(u, x, mean, r):
    return _partial_sums(u, u * ((x - mean) * r))


@_fused
def _sums_of_product(ddout, dout):
    return _partial_sums(ddout * dout)


@_fused
def _dx(dout, x, mean, sign, r, a, b):
    return r * (_put_back(dout, sign * x) - a - b * ((x - mean) * r))


@_fused
def _ddout(u, x, out, sign, r, c, d):
    """P r (u − c − d y)."""
    members = windows(u)
    selected, winner = members[0], _winner(sign * x)
    for position, member in enumerate(members[1:], start=1):
        selected = tf.where(winner == position, member, selected)
    return r * (selected - c - d * out)


@_fused
def _ddx(u, dout, x, mean, sign, r, a, b, c, d, e):
    q, y = _put_back(dout, sign * x), (x - mean) * r
    return (2 * r * r * b * d - r * e) * y + r * r * (a * d + b * c) - r * r * (d * q + b * u)


def _winner(x: tf.Tensor) -> tf.Tensor:
    """Which member of its window is the largest, [examples, height // 2, width // 2, channels]."""
    members = windows(x)
    top, winner = members[0], tf.zeros(members[0].shape, tf.int32)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, position, winner)  # the first of equals, as in tf.nn.max_pool2d
        top = tf.maximum(member, top)
    return winner


def _put_back(dout: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Pᵀ dout: at the largest entry of each of x's windows, zero elsewhere."""
    examples, height, width, channels = dout.shape
    position = tf.reshape(tf.range(4), [2, 1, 2, 1])
    here = _winner(x)[:, :, None, :, None] == position
    whole = tf.where(here, dout[:, :, None, :, None], tf.zeros([], dout.dtype))
    whole = tf.reshape(whole, [examples, 2 * height, 2 * width, channels])
    return tf.pad(whole, [[0, 0], [0, x.shape[1] - 2 * height], [0, x.shape[2] - 2 * width], [0, 0]])
