"""The lower bound by arithmetic: how fast a meta-update would be if it were nothing but its products.

A forward pass of one image takes F multiply-adds, F₁ of them in the first layer. A layer's product
z = W x has two more in its gradient, ∂W and ∂x, and the first layer needs no ∂x: 3F − F₁ for a
gradient. Each of these three products is differentiated again for the meta-gradient, by both of
its factors but for the images: 2F − F₁ (z), 2(F − F₁) (∂x) and 2F − F₁ (∂W). With the gradient
itself that is 9F − 5F₁ for every support image of every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from maml.config import Config
from maml.models.official import CONV_BLOCKS, Network


class Layer(NamedTuple):
    """A layer as a matrix product: [positions of an image, fan_in] times [fan_in, fan_out]."""

    positions: int
    fan_in: int
    fan_out: int

    @property
    def multiply_adds(self) -> int:
        """Of one image."""
        return self.positions * self.fan_in * self.fan_out


def layers(network: Network) -> list[Layer]:
    """All layers, first to last. Products with a convolution's padding count as any other."""
    if network.kind == "fc":
        sizes = [network.dim_input, *network.dim_hidden, network.dim_output]
        return [Layer(1, sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]
    found, size, channels, filters = [], network.image_size, network.channels, network.dim_hidden[0]
    for _ in range(CONV_BLOCKS):
        outputs = size if network.max_pool else (size + 1) // 2
        found.append(Layer(outputs**2, 9 * channels, filters))
        size, channels = (size // 2 if network.max_pool else outputs), filters
    return [*found, Layer(1, filters * (size**2 if network.flat_head else 1), network.dim_output)]


def meta_update_multiply_adds(config: Config, network: Network) -> int:
    """B·[K·S·(9F − 5F₁) + Q·(3F − F₁)] with B tasks, K steps, S support and Q query images a task."""
    each = [layer.multiply_adds for layer in layers(network)]
    whole, first = sum(each), each[0]
    support, query = support_and_query(config)
    inner = config.num_updates * support * (9 * whole - 5 * first)
    return config.meta_batch_size * (inner + query * (3 * whole - first))


def support_and_query(config: Config) -> tuple[int, int]:
    """Support and query examples of a task, all classes together."""
    classes = config.num_classes if config.classification else 1
    return classes * config.update_batch_size, classes * config.query_per_class


class Products(NamedTuple):
    """Something that multiplies matrices of the network's shapes, to measure at what rate the machine can.

    run: multiplies them once.
    multiply_adds: of one run.
    """

    run: Callable[[], float]
    multiply_adds: int


def products(config: Config, network: Network, examples: int) -> Products:
    """A gradient's three products in every convolution, for `examples` images a task.

    Strided convolutions, on small maps: batched matrix products, a matrix a task. Pooled ones, on
    large maps: convolutions, a task's images together.
    """
    blocks = layers(network)[:CONV_BLOCKS]
    multiply = _convolutions if network.max_pool else _matrix_products
    once = tf.function(lambda inputs: multiply(inputs), autograph=False)
    tasks = 1 if network.max_pool else config.meta_batch_size
    inputs = [_operands(layer, examples, tasks, network.max_pool) for layer in blocks]

    def run() -> float:
        once(inputs)
        tf.test.experimental.sync_devices()
        return 0.0

    each = [layer.multiply_adds for layer in blocks]
    return Products(run, tasks * examples * (3 * sum(each) - each[0]))


def _operands(layer: Layer, examples: int, tasks: int, pooled: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Random input, kernel and output gradient of a layer."""
    if pooled:
        size, channels = round(layer.positions**0.5), layer.fan_in // 9
        shapes = [
            [examples, size, size, channels],
            [3, 3, channels, layer.fan_out],
            [examples, size, size, layer.fan_out],
        ]
    else:
        rows = examples * layer.positions
        shapes = [[tasks, rows, layer.fan_in], [tasks, layer.fan_in, layer.fan_out], [tasks, rows, layer.fan_out]]
    inp, kernel, out = (tf.random.stateless_normal(shape, [0, seed]) for seed, shape in enumerate(shapes))
    return inp, kernel, out


def _matrix_products(inputs) -> list[tf.Tensor]:
    results = []
    for i, (inp, kernel, out) in enumerate(inputs):
        results += [inp @ kernel, tf.matmul(inp, out, transpose_a=True)]
        if i:
            results.append(tf.matmul(out, kernel, transpose_b=True))
    return results


def _convolutions(inputs) -> list[tf.Tensor]:
    results = []
    for i, (inp, kernel, out) in enumerate(inputs):
        results.append(tf.nn.conv2d(inp, kernel, 1, "SAME"))
        results.append(
            tf.raw_ops.Conv2DBackpropFilter(
                input=inp, filter_sizes=kernel.shape, out_backprop=out, strides=[1, 1, 1, 1], padding="SAME"
            )
        )
        if i:
            results.append(tf.nn.conv2d_transpose(out, kernel, inp.shape, 1, "SAME"))
    return results
