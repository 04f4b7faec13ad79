"""The operations of the networks for many tasks at once, exact to second order.

The maps of the convolutional network are [tasks, examples, height, width, channels].

Every operation can be differentiated twice; the convolutional network's no more often: a
meta-gradient needs no third derivative. `tests/test_central_differences.py` proves it in float64.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Fuses passes over memory into one; used for element-wise work only, which is where XLA gains on a CPU.
fused = functools.partial(tf.function, jit_compile=True, autograph=False)

MOST_NEIGHBOURS = 10  # in a partial sum; measured

# Up to so many examples and numbers in the result, XLA sums outer products faster than it multiplies matrices.
FEW_EXAMPLES = 20
SMALL_MATRIX = 10_000

# Rows or columns up to which a matrix that the tasks share gains nothing by being multiplied as it is. With one, XLA
# fuses the sum over tasks and examples in its gradient with what makes the terms, into a slow loop.
THIN_MATRIX = 20

# Numbers in the patches of an example up to which a convolution is a product of them; measured.
SMALL_PATCHES = 10_000

# Images' patches are the same in every inner step: there, so many in all of a task.
IMAGE_CHANNELS = 3
IMAGE_PATCHES = 5_000_000


def for_each_task(weight: tf.Tensor, tasks: int) -> tf.Tensor:
    """`tasks` times the same weight, [tasks, …].

    XLA fuses a plain sum of the tasks' gradients with the sum over examples that makes them, into a
    loop that takes ten times as long as both; a sum of matrices that are named one by one it does not.
    """

    @tf.custom_gradient
    def repeat(weight):
        return tf.broadcast_to(weight, [tasks, *weight.shape]), lambda dout: tf.add_n(tf.unstack(dout))

    return repeat(weight)


class Shared(NamedTuple):
    """A weight that the tasks still share, with each task's own gradient.

    What is computed with it is dense, and so are the derivatives by `weight`; by `own` a tape finds the gradient that
    the result has by the weight in each task alone. It serves a first derivative by `own`, which can be
    differentiated by everything else.

    weight: a kernel [3, 3, in, out] or a matrix [in, out].
    own: [tasks, …], of any value.
    """

    weight: tf.Tensor
    own: tf.Tensor


def _with_own_gradient(out: tf.Tensor, own: tf.Tensor, gradient: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """`out`, whose cotangent makes by `gradient` that of `own`."""

    @tf.custom_gradient
    def attach(out, own):
        return tf.identity(out), lambda dout: (dout, gradient(dout))

    return attach(out, own)


def product(inp: tf.Tensor, weight: tf.Tensor | Shared) -> tf.Tensor:
    """The product of every task's examples with the task's own matrix, or with one that is shared.

    Args:
        inp: [tasks, examples, in].
        weight: [tasks, in, out], [in, out] or `Shared`.

    Returns:
        [tasks, examples, out].
    """
    if isinstance(weight, Shared):
        return _with_own_gradient(product(inp, weight.weight), weight.own, lambda dout: _outer(inp, dout))
    if len(weight.shape) == 3:
        return _own_product(inp, weight)
    tasks, _, fan_in = inp.shape
    return tf.reshape(tf.reshape(inp, [-1, fan_in]) @ weight, [tasks, -1, weight.shape[1]])


@tf.custom_gradient
def _own_product(inp, weight):
    """`product` with each task's own matrix.

    It, its gradient by the input and its gradient by the matrix are one another's derivatives, so
    that each is written once, in the way that is fastest for few examples.
    """
    return tf.matmul(inp, weight), lambda dout: (_product_back(dout, weight), _outer(inp, dout))


@tf.custom_gradient
def _product_back(dout, weight):
    """The gradient of `_own_product` by its input, [tasks, examples, in]."""
    return tf.matmul(dout, weight, transpose_b=True), lambda u: (_own_product(u, weight), _outer(u, dout))


@tf.custom_gradient
def _outer(inp, dout):
    """The gradient of `_own_product` by its matrix, the sum of the examples' outer products: [tasks, in, out]."""
    examples, fan_in, fan_out = inp.shape[1], inp.shape[2], dout.shape[2]
    if examples is not None and examples <= FEW_EXAMPLES and max(fan_in, fan_out) < fan_in * fan_out <= SMALL_MATRIX:
        total = tf.reduce_sum(inp[:, :, :, None] * dout[:, :, None], 1)
    else:
        total = tf.matmul(inp, dout, transpose_a=True)
    return total, lambda u: (_product_back(dout, u), _own_product(inp, u))


def conv2d(inp: tf.Tensor, kernel: tf.Tensor | Shared, stride: int) -> tf.Tensor:
    """SAME convolution of every task's examples with the task's own kernel, or with one that is shared.

    Small ones are one product of all tasks' patches: a convolution would spend its time on bringing
    each task's kernel into an order of its own. In larger ones the patches would take longer.

    Args:
        inp: [tasks, examples, height, width, in].
        kernel: [tasks, 3, 3, in, out], [3, 3, in, out] or `Shared`.
        stride: in both directions.

    Returns:
        [tasks, examples, ceil(height / stride), ceil(width / stride), out].
    """
    if isinstance(kernel, Shared):
        out, shape = conv2d(inp, kernel.weight, stride), kernel.own.shape
        return _with_own_gradient(out, kernel.own, lambda dout: _by_kernel(inp, dout, shape, stride))
    tasks, shared = inp.shape[0], len(kernel.shape) == 4
    *window, filters = kernel.shape[-4:]
    height, width = (math.ceil(length / stride) for length in inp.shape[2:4])
    if (rows := _rows(inp, window, stride)) is not None:
        rows = tf.reshape(rows, [1, -1, rows.shape[2]]) if shared else rows
        out = _patches_product(rows, tf.reshape(kernel, [-1, rows.shape[2], filters]))
    elif shared:
        out = tf.nn.conv2d(tf.reshape(inp, [-1, *inp.shape[2:]]), kernel, stride, "SAME")
    else:
        pairs = zip(tf.unstack(inp), tf.unstack(kernel), strict=True)
        out = tf.stack([tf.nn.conv2d(images, own, stride, "SAME") for images, own in pairs])
    return tf.reshape(out, [tasks, -1, height, width, filters])


def _by_kernel(inp: tf.Tensor, dout: tf.Tensor, shape: tf.TensorShape, stride: int) -> tf.Tensor:
    """The gradient of `conv2d` by the tasks' kernels."""
    tasks, *window, filters = shape
    if (rows := _rows(inp, window, stride)) is not None:
        return tf.reshape(_patches_outer(rows, tf.reshape(dout, [tasks, -1, filters])), shape)
    by_task = [
        tf.raw_ops.Conv2DBackpropFilter(
            input=images, filter_sizes=shape[1:], out_backprop=of_task, strides=[1, stride, stride, 1], padding="SAME"
        )
        for images, of_task in zip(tf.unstack(inp), tf.unstack(dout), strict=True)
    ]
    return tf.stack(by_task)


@tf.custom_gradient
def _patches_product(rows, kernel):
    """The product of patches [tasks, n, fan_in] with kernels [tasks, fan_in, filters]."""
    return tf.matmul(rows, kernel), lambda dout: (tf.matmul(dout, kernel, transpose_b=True), _patches_outer(rows, dout))


@tf.custom_gradient
def _patches_outer(rows, dout):
    """The gradient of `_patches_product` by the kernels.

    Images' patches are the same in every inner step: they are transposed once, for all steps, because the product
    with transposed ones is the faster one. With ones on the diagonal, for with `tf.transpose` it takes as long
    as without: TensorFlow puts that back into the product.
    """
    tasks, _, fan_in = rows.shape
    if fan_in <= 9 * IMAGE_CHANNELS:
        columns = tf.matmul(tf.eye(fan_in, batch_shape=[tasks], dtype=rows.dtype), rows, transpose_b=True)
        total = tf.matmul(columns, dout)
    else:
        total = tf.matmul(rows, dout, transpose_a=True)
    return total, lambda u: (tf.matmul(dout, u, transpose_b=True), _patches_product(rows, u))


def _rows(inp: tf.Tensor, window: list[int], stride: int) -> tf.Tensor | None:
    """The patches of every task, [tasks, examples · windows, fan_in], if multiplying them is faster than convolving."""
    tasks, examples, height, width, channels = inp.shape
    fan_in = math.prod(window)
    numbers = math.ceil(height / stride) * math.ceil(width / stride) * fan_in
    images = channels <= IMAGE_CHANNELS and examples is not None and examples * numbers <= IMAGE_PATCHES
    if numbers > SMALL_PATCHES and not images:
        return None
    together = tf.reshape(inp, [-1, height, width, channels])
    if channels <= IMAGE_CHANNELS:
        unit = tf.reshape(tf.eye(fan_in, dtype=inp.dtype), [*window, fan_in])
        patches = tf.nn.conv2d(together, unit, stride, "SAME")
    else:
        patches = _patches(together, window[0], stride)
    return tf.reshape(patches, [tasks, -1, fan_in])


def _patches(inp: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """What the windows of a SAME convolution see.

    Args:
        inp: [n, height, width, channels].
        size: height and width of the windows.

    Returns:
        [n, windows, size², channels].
    """
    _, height, width, channels = inp.shape
    nothing = height * width  # a cell of zeros behind the others
    cells = np.arange(nothing).reshape(height, width)
    cells = np.pad(cells, _padding(inp.shape, size, stride), constant_values=nothing)
    seen = np.lib.stride_tricks.sliding_window_view(cells, (size, size))[::stride, ::stride].reshape(-1, size**2)
    # The places where a cell is seen, so that the gradient, too, is gathered; adding up scattered rows is slower.
    places = [np.flatnonzero(seen == cell) for cell in range(nothing)]
    most = max(map(len, places))
    nowhere = seen.size
    sources = [[where[i] if i < len(where) else nowhere for where in places] for i in range(most)]

    @tf.custom_gradient
    def gather(inp):
        cells = tf.pad(tf.reshape(inp, [-1, nothing, channels]), [[0, 0], [0, 1], [0, 0]])
        return tf.gather(cells, seen, axis=1), put_back

    @tf.custom_gradient
    def put_back(patches):
        seen_cells = tf.pad(tf.reshape(patches, [-1, nowhere, channels]), [[0, 0], [0, 1], [0, 0]])
        total = tf.add_n([tf.gather(seen_cells, source, axis=1) for source in sources])
        return tf.reshape(total, [-1, height, width, channels]), gather

    return gather(inp)


def _padding(shape: tf.TensorShape, size: int, stride: int) -> list[tuple[int, int]]:
    """Zeros before and after each row and column in a SAME convolution."""
    totals = [max((math.ceil(length / stride) - 1) * stride + size - length, 0) for length in shape[1:3]]
    return [(total // 2, total - total // 2) for total in totals]


def standardize_relu_pool(inp: tf.Tensor, shift: tf.Tensor, epsilon: float, window: int) -> tf.Tensor:
    """Max pooling of relu((x − mean) / √(variance + ε) + shift), mean and variance of each task's channels.

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves first
    derivatives right and second derivatives wrong. Here both are closed forms: tapes would make
    many more passes over maps that do not fit a cache.

    With y the standardized x and r = (variance + ε)^−½, let P select each window's largest entry
    where the ReLU passes it, and Pᵀ put it back. For q = Pᵀ dout, a = ⟨q⟩ and b = ⟨q y⟩, the means
    of every task's channels, the first derivative is dx = r (q − a − b y); `second` differentiates that.
    Nothing is kept but the input and the output: which entry is the largest is found anew wherever
    the input is read, because reading is what takes the time.

    A derivative through the first derivative gives x two cotangents, by `second` and by the forward pass.
    They are computed together, in one pass over x: the first derivative reads x from outputs of the operation that
    nothing else reads, and what `second` hands to them comes back to the operation's own gradient. It is not a
    cotangent but what one is made of, `_Found`, which does not add up; so only one derivative does this, and
    a further one of the same forward pass makes two passes.

    Args:
        inp: [tasks, examples, height, width, channels].
        shift: [tasks, 1, 1, 1, channels].
        epsilon: ε.
        window: height and width of the pooling's windows, VALID; 1: no pooling.

    Returns:
        [tasks, examples, height // window, width // window, channels].
    """
    unread: list[tf.Tensor] = []

    @tf.custom_gradient
    def op(x, shift):
        rows = math.prod(x.shape[1:4])
        mean, variance = _moments(x)
        r = tf.math.rsqrt(variance + tf.constant(epsilon, x.dtype))
        out = _forward(x, mean, r, shift, window)

        def gradient(dout, *found):
            a, b = _means(_passed(dout, out, shift), rows)
            is_first = bool(unread)
            inputs = tuple(unread) or (x,)
            unread.clear()

            def both_passes(dout, a, b, found):
                return _both_passes(dout, out, x, mean, r, a, b, found, window)

            @tf.custom_gradient
            def derivative(dout, *_):
                # Before there is a first derivative nothing can come back from it.
                if is_first:
                    dx = _first_pass(dout, out, x, mean, r, a, b, window)
                else:
                    dx = both_passes(dout, a, b, _Found(*found))

                def second(u, u_shift):
                    c, d = _means(_with_y(u, x, mean, r), rows)
                    ddout = _derivative_along(u, u_shift, x, out, shift, r, c, d, window)
                    [e] = _means(_along_terms(ddout, u_shift, dout, out), rows)
                    of_q, of_u = r * r * d, r * r * b
                    of_y, constant = 2 * b * of_q - r * e, a * of_q + c * of_u
                    here = _Found(u, dout, tf.stack([of_q, of_y, constant, of_u]))
                    if is_first:
                        return ddout, *here
                    return ddout, both_passes(tf.zeros_like(dout), tf.zeros_like(a), tf.zeros_like(b), here)

                return (dx, rows * a), second

            return derivative(dout, *inputs)

        return (out, *_Found(x, out, tf.zeros([4, *mean.shape], x.dtype))), gradient

    out, *unread[:] = op(inp, shift)
    return out


class _Found(NamedTuple):
    """What the cotangent of x in `standardize_relu_pool` is made of, as far as it comes through the first derivative.

    u: cotangent of the first derivative, like x.
    dout: of which that is the derivative, like the result.
    terms: [4, tasks, 1, 1, 1, channels], the factors of q, y, 1 and u.
    """

    u: tf.Tensor
    dout: tf.Tensor
    terms: tf.Tensor


def max_pool(inp: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling, VALID.

    Not tf.nn.max_pool2d, whose second derivative XLA rounds to 8 bits.
    """
    return functools.reduce(tf.maximum, _windows(inp, 2))


def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of every task's channels, [tasks, 1, 1, 1, channels] each, in one pass over x.

    ⟨(x − p)²⟩ − ⟨x − p⟩² rounds like the variance itself as long as p is near the mean. The mean of the first of n
    examples is no further from it than √(n − 1) standard deviations.
    """
    # A slice of the first axis alone is not copied.
    first = x[0][:1][None] if x.shape[0] == 1 else x[:, :1]
    near = _sum(first) / math.prod(x.shape[2:4])
    distance, square = _means(_distances(x, near), math.prod(x.shape[1:4]))
    return near + distance, tf.nn.relu(square - tf.square(distance))


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Sum of every task's last axis, [tasks, 1, 1, 1, n]; a product with ones is the fastest on a CPU."""
    tasks, *others, numbers = x.shape
    shape = [math.prod(others), numbers] if tasks == 1 else [tasks, math.prod(others), numbers]
    ones = tf.ones([*shape[:-2], 1, shape[-2]], x.dtype)
    return tf.reshape(ones @ tf.reshape(x, shape), [tasks, 1, 1, 1, numbers])


def _means(partial: tf.Tensor, rows: int) -> list[tf.Tensor]:
    """The means over `rows` neighbours of what `_partial_sums` began to sum, [tasks, 1, 1, 1, channels] each."""
    tasks, count, maps, channels = partial.shape
    means = _sum(tf.reshape(partial, [tasks, count, maps * channels])) / rows
    return tf.split(means, maps, -1)


def _partial_sums(*maps: tf.Tensor) -> tf.Tensor:
    """Sums of every map and channel over a few neighbours, [tasks, n, maps, channels], for `_means` to finish.

    XLA is fast at these, and what they are sums of need not be written; at longer ones it is slow.
    Several maps are one result, so that what they are made of is read once.
    """
    tasks, *others, channels = maps[0].shape
    rows = math.prod(others)
    few = next(count for count in range(MOST_NEIGHBOURS, 0, -1) if rows % count == 0)
    shape = [tasks, rows // few, few, 1, channels]
    return tf.reduce_sum(tf.concat([tf.reshape(numbers, shape) for numbers in maps], 3), 2)


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
def _both_passes(dout, out, x, mean, r, a, b, found, window):
    """The cotangent of x by the forward pass, as in `_first_pass`, and by the first derivative."""
    of_q, of_y, constant, of_u = tf.unstack(found.terms)
    q = _spread(_where_open(out, r * dout - of_q * found.dout), x, window)
    return q + (of_y - r * b) * ((x - mean) * r) + (constant - r * a) - of_u * found.u


def _where_open(out: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The value where the ReLU passed something, zero elsewhere."""
    return tf.where(out > 0, value, tf.zeros([], value.dtype))


def _windows(x: tf.Tensor, window: int) -> list[tf.Tensor]:
    """The members of every window, [tasks, n, height // window, width // window, c] each; a rest is dropped."""
    if window == 1:
        return [x]
    tasks, _, height, width, channels = x.shape
    height, width = height // window, width // window
    whole = x[:, :, : window * height, : window * width]
    cells = tf.reshape(whole, [tasks, -1, height, window, width, window, channels])
    return [cells[:, :, :, i, :, j] for i in range(window) for j in range(window)]


def _winner(x: tf.Tensor, window: int) -> tf.Tensor:
    """Which member of its window is the largest, [tasks, n, height // window, width // window, c]."""
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
    tasks, examples, height, width, channels = q.shape
    position = tf.reshape(tf.range(window**2), [window, 1, window, 1])
    here = _winner(x, window)[:, :, :, None, :, None] == position
    whole = tf.where(here, q[:, :, :, None, :, None], tf.zeros([], q.dtype))
    whole = tf.reshape(whole, [tasks, examples, window * height, window * width, channels])
    rest = [[0, x.shape[2] - window * height], [0, x.shape[3] - window * width]]
    return tf.pad(whole, [[0, 0], [0, 0], *rest, [0, 0]])
