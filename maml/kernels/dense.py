"""Products of a few examples with a small matrix, and one number in all places, exact to second order.

Plain form: `inputs @ matrix`. Fast form: the same with its derivatives written out, so that

    ∂L/∂matrix = Σ_examples inputs[e] ⊗ dout[e]

is a sum of outer products: for few examples XLA sums these faster than it multiplies matrices. A sum of all elements
it computes one after another, a product with ones not:

    ∂L/∂number = Σ_i dout[i] = doutᵀ 1
"""

import tensorflow as tf

from maml import machine

# Up to so many examples and elements of the matrix.
_FEW_EXAMPLES = 20
_SMALL_MATRIX = 10_000
# So many rows are summed in one go. A GPU gives an element of the sum to one of its many processors: of long sums of
# small matrices it would use few.
_MANY_EXAMPLES = 1024


@tf.custom_gradient
def product(inp, weight):
    """Inputs [examples, in] times a matrix [in, out]: [examples, out].

    The product, its gradient by the inputs and its gradient by the matrix are one another's derivatives.
    """
    return inp @ weight, lambda dout: (_by_inputs(dout, weight), _by_matrix(inp, dout))


@tf.custom_gradient
def _by_inputs(dout, weight):
    return tf.matmul(dout, weight, transpose_b=True), lambda u: (product(u, weight), _by_matrix(u, dout))


@tf.custom_gradient
def _by_matrix(inp, dout):
    examples, fan_in, fan_out = inp.shape[0], inp.shape[1], dout.shape[1]
    if examples is not None and examples <= _FEW_EXAMPLES and max(fan_in, fan_out) < fan_in * fan_out <= _SMALL_MATRIX:
        total = tf.reduce_sum(inp[:, :, None] * dout[:, None], 0)
    elif examples is not None and examples > _MANY_EXAMPLES and machine.on_gpu():
        rows = next(count for count in range(_MANY_EXAMPLES, 0, -1) if examples % count == 0)
        parts = tf.reshape(inp, [-1, rows, fan_in]), tf.reshape(dout, [-1, rows, fan_out])
        total = tf.reduce_sum(tf.matmul(*parts, transpose_a=True), 0)
    else:
        total = tf.matmul(inp, dout, transpose_a=True)
    return total, lambda u: (_by_inputs(dout, u), product(inp, u))


def filled(number, shape):
    """A number [] in all places of a tf.TensorShape that is known, as `tf.fill` has it: a tensor of that shape."""

    @tf.custom_gradient
    def fill(number):
        return tf.fill(shape, number), total

    def total(dout):
        return tf.reshape(tf.reshape(dout, [1, -1]) @ tf.ones([shape.num_elements(), 1], dout.dtype), [])

    return fill(number)
