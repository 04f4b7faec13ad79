"""Batch-norm's standardization of feature maps, alone and with 2×2 max pooling after it, exact to second order.

Plain forms: `standardize`, and `plain` with pooling. Fast forms: `_standardized` and `_closed_form`, the same functions
with both derivatives written out, because tapes would make many more passes over the maps. With the plain form an
Omniglot 20-way update takes 1.12 times as long (measured on an AMD EPYC with AVX-512), and a miniImageNet update, whose
large maps are pooled, 2.3 times (AVX2). `tests/kernels/test_batch_norm.py` checks that both agree to second order.
"""

import functools
import math
from typing import Any

import tensorflow as tf

from maml import machine
from maml.kernels.pooling import max_pool, windows

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
_fused = functools.partial(tf.function, jit_compile=True, autograph=False)

_MOST_NEIGHBORS = 10  # in a partial sum; measured


def batch_norm(inp: tf.Tensor, epsilon: float, reference: int | tf.Tensor | None = None) -> tf.Tensor:
    """Standardization, y = (x − mean) / √(variance + ε), with mean and variance of each channel.

    Args:
        inp: x, [examples, …, channels].
        epsilon: ε.
        reference: how many examples, the first ones, the statistics are taken from; None: all.

    Returns:
        y, of x's shape.
    """
    if len(inp.shape) == 4 and _fast(inp, reference):
        return _standardized(inp, epsilon)
    return standardize(inp, list(range(len(inp.shape) - 1)), epsilon, reference)


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
    return _closed_form(inp, epsilon, sign) if _fast(inp, reference) else plain(inp, epsilon, sign, reference)


def _fast(inp: tf.Tensor, reference: Any) -> bool:
    """Whether to take a fast form.

    On a GPU XLA compiles the whole update, and fuses the plain form. Eagerly, every other number of examples would
    be compiled anew, for one use.
    """
    return reference is None and inp.shape.is_fully_defined() and not (tf.executing_eagerly() or machine.on_gpu())


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


def _standardized(inp: tf.Tensor, epsilon: float) -> tf.Tensor:
    """The fast form without pooling.

    With y the standardized x, r = (variance + ε)^−½ and the means ⟨·⟩ over a channel, the derivative of y by x is

        J v = r (v − ⟨v⟩ − ⟨v y⟩ y),

    which is symmetric: dx = J dout. For a cotangent u of dx, that of dout is J u, and that of x

        ddx = −r (⟨dout J u⟩ y + ⟨u y⟩ J dout + ⟨dout y⟩ J u).

    The statistics are taken by reductions, which round less than products with ones: the error of a large mean would
    be that of y.
    """
    axes, rows, channels = [0, 1, 2], math.prod(inp.shape[:-1]), inp.shape[-1]

    def mean(x: tf.Tensor) -> tf.Tensor:
        return _sum(tf.reshape(x, [rows, channels])) / rows

    @tf.custom_gradient
    def forward(x):
        centered = x - tf.reduce_mean(x, axes)
        r = tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axes) + epsilon)
        y = centered * r

        def backward(dout):
            @tf.custom_gradient
            def first(dout, x):
                along = mean(dout * y)
                dx = _project(dout, y, r, mean(dout), along)

                def second(u):
                    along_u = mean(u * y)
                    ddout = _project(u, y, r, mean(u), along_u)
                    return ddout, _bend(y, dx, ddout, r, mean(dout * ddout), along_u, along)

                return dx, second

            return first(dout, x)

        return y, backward

    return forward(inp)


@_fused
def _project(v, y, r, mean, along):
    return r * (v - mean - along * y)


@_fused
def _bend(y, dx, ddout, r, of_y, of_dx, of_ddout):
    return -r * (of_y * y + of_dx * dx + of_ddout * ddout)


def _closed_form(inp: tf.Tensor, epsilon: float, sign: tf.Tensor | None = None) -> tf.Tensor:
    """The fast form with pooling.

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
