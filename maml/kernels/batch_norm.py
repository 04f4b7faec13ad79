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
_CLOSED = 4  # where the ReLU passes nothing, instead of a window's member, 0 to 3


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


def batch_norm_pool_relu(
    inp: tf.Tensor, epsilon: float, shift: tf.Tensor, reference: int | tf.Tensor | None = None
) -> tf.Tensor:
    """relu(2×2 pooling of y + shift), the block of the official networks: `batch_norm_pool` with what follows it there.

    Args:
        inp, epsilon, reference: see `batch_norm_pool`.
        shift: [channels].

    Returns:
        [examples, height // 2, width // 2, channels].
    """
    if _fast(inp, reference):
        return _closed_form(inp, epsilon, shift=shift)
    return tf.nn.relu(plain(inp, epsilon, None, reference) + shift)


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


def _closed_form(
    inp: tf.Tensor, epsilon: float, sign: tf.Tensor | None = None, shift: tf.Tensor | None = None
) -> tf.Tensor:
    """The fast form with pooling: P y, or, with a shift s, relu(P y + s).

    With y the standardized x and r = (variance + ε)^−½, let P select each window's entry, where the ReLU passes it, and
    Pᵀ put it back. For q = Pᵀ dout and the means a = ⟨q⟩, b = ⟨q y⟩ over the n entries of a channel,

        dx = r (q − a − b y),    ds = n a.

    For cotangents u of dx and v of ds, with c = ⟨u⟩, d = ⟨u y⟩ and that of dout, ddout = P (r (u − c − d y) + v),
    e = ⟨dout ddout⟩ − a v,

        ddx = (2 r² b d − r e) y + r² (a d + b c) − r² (d q + b u).

    Where the windows' entries come from is stored, because finding it again in every pass takes longer.
    """
    rows, active = math.prod(inp.shape[:3]), shift is not None

    @tf.custom_gradient
    def forward(x, s):
        mean, variance = _moments(x, rows)
        r = tf.math.rsqrt(variance + epsilon)
        out = _forward(x, mean, r, s, sign, active)
        winner = _winner(x, out, sign, active)

        def backward(dout):
            @tf.custom_gradient
            def first(dout, x):
                a, b = _means(_sums_of_q(dout, out, winner, s), rows)

                def second(u, v):
                    c, d = _means(_sums_of_u(u, x, mean, r), rows)
                    ddout = _ddout(u, v, out, winner, r, s, c, d)
                    [e] = _means(_sums_of_product(ddout, dout), rows)
                    # Made here, once for every channel; inside the fused function they would be for every entry.
                    of_y, of_q, of_u = 2 * r * r * b * d - r * (e - a * v), r * r * d, r * r * b
                    return ddout, _ddx(u, dout, x, winner, mean, r, of_y, a * of_q + c * of_u, of_q, of_u)

                return (_dx(dout, x, winner, mean, r, r * a, r * b), rows * a), second

            return first(dout, x)

        return out, backward

    return forward(inp, tf.zeros(inp.shape[-1:], inp.dtype) if shift is None else shift)


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
    parts = [tf.reshape(values, [rows // few, few, channels]) for values in maps]
    if len(parts) == 1:
        # As additions: XLA gives a sum by itself to a library, YNNPACK, and in TensorFlow 2.21 makes that call ready
        # at its first execution, without a lock, so that two tasks at once crash now and then. It also takes longer.
        return functools.reduce(tf.add, tf.unstack(parts[0], axis=1))[:, None]
    return tf.reduce_sum(tf.stack(parts, 2), 1)


@_fused
def _sums_of_distance(x, near):
    return _partial_sums(x - near, tf.square(x - near))


@_fused
def _forward(x, mean, r, shift, sign, active):
    out = (_times(sign, functools.reduce(tf.maximum, windows(_times(sign, x)))) - mean) * r + shift
    return tf.nn.relu(out) if active else out


@_fused
def _winner(x, out, sign, active):
    """Which member of its window is selected, int8 like `out`; _CLOSED where the ReLU passes nothing."""
    members = windows(_times(sign, x))
    top, winner = members[0], tf.zeros(out.shape, tf.int8)
    for position, member in enumerate(members[1:], start=1):
        winner = tf.where(member > top, tf.constant(position, tf.int8), winner)  # the first of equals, as TensorFlow's
        top = tf.maximum(member, top)
    return tf.where(out > 0, winner, tf.constant(_CLOSED, tf.int8)) if active else winner


@_fused
def _sums_of_q(dout, out, winner, shift):
    """Of q and q y, which are zero but where the windows' entries come from."""
    passed = _where_open(winner, dout)
    return _partial_sums(passed, passed * (out - shift))


@_fused
def _sums_of_u(u, x, mean, r):
    return _partial_sums(u, u * ((x - mean) * r))


@_fused
def _sums_of_product(ddout, dout):
    return _partial_sums(ddout * dout)


@_fused
def _dx(dout, x, winner, mean, r, constant, of_y):
    return r * _put_back(dout, winner, x) - constant - of_y * ((x - mean) * r)


@_fused
def _ddout(u, v, out, winner, r, shift, c, d):
    """P (r (u − c − d y) + v)."""
    members = windows(u)
    selected = members[0]
    for position, member in enumerate(members[1:], start=1):
        selected = tf.where(winner == position, member, selected)
    return _where_open(winner, r * (selected - c - d * (out - shift)) + v)


@_fused
def _ddx(u, dout, x, winner, mean, r, of_y, constant, of_q, of_u):
    return of_y * ((x - mean) * r) + constant - of_q * _put_back(dout, winner, x) - of_u * u


def _times(sign: tf.Tensor | None, x: tf.Tensor) -> tf.Tensor:
    return x if sign is None else sign * x


def _where_open(winner: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(winner == _CLOSED, tf.zeros([], values.dtype), values)


def _put_back(dout: tf.Tensor, winner: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Pᵀ dout: at the selected entry of each of x's windows, zero elsewhere."""
    examples, height, width, channels = dout.shape
    position = tf.constant([0, 1, 2, 3], tf.int8, [2, 1, 2, 1])
    here = winner[:, :, None, :, None] == position
    whole = tf.where(here, dout[:, :, None, :, None], tf.zeros([], dout.dtype))
    whole = tf.reshape(whole, [examples, 2 * height, 2 * width, channels])
    return tf.pad(whole, [[0, 0], [0, x.shape[1] - 2 * height], [0, x.shape[2] - 2 * width], [0, 0]])
