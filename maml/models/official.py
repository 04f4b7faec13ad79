"""The official networks on plain dicts of tensors.

A `Weights` dict holds the adapted weights under the official names (`w1`, `b1`, … or `conv1`,
`b1`, …, `w5`, `b5`) and the normalisations' `model/<i>/beta` and `model/<i>/gamma`, which are
meta-learned but not adapted by MAML. Every forward pass carries a task axis: inputs are
[tasks, examples, dim_input], and an adapted weight either is shared by the tasks or has a
leading task axis, as fast weights do.

Source: the official `maml.py` (`construct_*`, `forward_*`) and `utils.py` (`conv_block`,
`normalize`).
"""

import dataclasses
import itertools
import math

import tensorflow as tf

from maml.config import Config
from maml.kernels import ops

Weights = dict[str, tf.Tensor]

BATCH_NORM_EPSILON = 0.001
LAYER_NORM_EPSILON = 1e-12
CONV_BLOCKS = 4


@dataclasses.dataclass(frozen=True)
class Network:
    """The shape of a network: everything that decides which weights it has.

    dim_input: numbers of an example (image_size² · channels for images).
    dim_output: outputs of an example.
    dim_hidden: units of the hidden layers (fully connected) or filters of every block.
    image_size, channels: of the images; 0 where there are none.
    bfloat16: the convolutions round their inputs and kernels to bfloat16.
    flat_head: the head reads the flattened last map; otherwise its mean over space.
    """

    kind: str
    dim_input: int
    dim_output: int
    dim_hidden: tuple[int, ...]
    norm: str
    image_size: int = 0
    channels: int = 0
    max_pool: bool = False
    flat_head: bool = False
    dtype: str = "float32"
    bfloat16: bool = False

    @classmethod
    def from_config(cls, config: Config) -> "Network":
        """The network that the official code builds for this setting."""
        if not config.classification:
            dim_input = 3 if config.baseline == "oracle" else 1
            return cls("fc", dim_input, 1, (40, 40), config.norm, dtype=config.dtype)
        image_size, channels = config.image_shape
        hidden = (config.num_filters,) if config.conv else (256, 128, 64, 64)
        return cls(
            "conv" if config.conv else "fc",
            image_size**2 * channels,
            config.num_classes,
            hidden,
            config.norm,
            image_size=image_size,
            channels=channels,
            max_pool=config.max_pool,
            flat_head=config.datasource != "omniglot",
            dtype=config.dtype,
            bfloat16=config.bfloat16,
        )

    @property
    def largest_matrix(self) -> int:
        """Numbers in the largest matrix of a fully connected network."""
        sizes = [self.dim_input, *self.dim_hidden, self.dim_output]
        return max(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(sizes))

    @property
    def map_size(self) -> int:
        """Height and width of the last block's map."""
        size = self.image_size
        for _ in range(CONV_BLOCKS):
            size = size // 2 if self.max_pool else math.ceil(size / 2)
        return size

    @property
    def largest_map(self) -> int:
        """Numbers in the first block's map of an example."""
        size = self.image_size if self.max_pool else math.ceil(self.image_size / 2)
        return size**2 * self.dim_hidden[0]

    def construct_weights(self, seed: int) -> Weights:
        """Fresh weights, a function of `seed` alone, in `dtype`."""
        construct = construct_conv_weights if self.kind == "conv" else construct_fc_weights
        return {name: tf.cast(weight, self.dtype) for name, weight in construct(self, seed).items()}

    def forward(self, inp: tf.Tensor, weights: Weights, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [tasks, examples, dim_output] of inputs [tasks, examples, dim_input].

        Args:
            reference: batch-norm takes its statistics from so many examples, the first ones, instead of
                from all. For prediction: not made to be fast, nor to be differentiated.
        """
        forward = forward_conv if self.kind == "conv" else forward_fc
        return forward(inp, _for_layers(weights, inp.shape[0]), self, reference)

    def construct_embedding(self, seed: int) -> Weights:
        """Fresh weights of the convolutional network without its head."""
        weights = self.construct_weights(seed)
        return {name: weight for name, weight in weights.items() if name not in ("w5", "b5")}

    def embed(self, inp: tf.Tensor, weights: Weights, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """The last block's maps, flattened: [tasks, examples, dim_input] → [tasks, examples, dim_embedding]."""
        maps = forward_blocks(inp, _for_layers(weights, inp.shape[0]), self, reference)
        return tf.reshape(maps, [inp.shape[0], -1, self.dim_embedding])

    @property
    def dim_embedding(self) -> int:
        """Numbers in the last block's map of an example."""
        return self.map_size**2 * self.dim_hidden[0]


def is_adapted(name: str) -> bool:
    """Whether the inner loop adapts this weight: not the normalisations' `model/…`, nor another with a slash."""
    return "/" not in name


def is_shared(name: str, weight: tf.Tensor) -> bool:
    """Whether an adapted weight has no task axis."""
    ranks = {"c": 4, "w": 2, "b": 1}  # of kernels, matrices and biases that the tasks share
    return is_adapted(name) and len(weight.shape) == ranks.get(name[0])


def is_dense(name: str, weight: tf.Tensor) -> bool:
    """Whether a weight is shared and to be computed with as it is: a kernel, or a matrix that is not thin."""
    thick = len(weight.shape) == 2 and min(weight.shape) > ops.THIN_MATRIX
    return is_shared(name, weight) and (len(weight.shape) == 4 or thick)


def per_task(weights: Weights, tasks: int) -> Weights:
    """Gives every adapted matrix and bias that the tasks share a leading task axis; kernels stay as they are."""
    return {
        name: ops.for_each_task(weight, tasks) if is_shared(name, weight) and len(weight.shape) < 4 else weight
        for name, weight in weights.items()
    }


def with_own_gradients(theta: Weights, tasks: int) -> tuple[Weights, dict[str, tf.Tensor | ops.Shared], Weights]:
    """What an inner step computes with.

    Returns:
        The weights that the step adds to; those for the forward pass; and those by which a tape finds the gradient
        of every task's loss. They are the same but in the first step, where the tasks still share dense weights.
    """
    theta, shared = per_task(theta, tasks), theta
    used = {
        name: ops.Shared(weight, tf.zeros([tasks, *weight.shape], weight.dtype))
        if is_dense(name, weight)
        else theta[name]
        for name, weight in shared.items()
    }
    return theta, used, {n: weight.own if isinstance(weight, ops.Shared) else weight for n, weight in used.items()}


def _for_layers(weights: Weights, tasks: int) -> Weights:
    """Weights as layers take them: shared ones with a task axis, but for dense ones."""
    others = {n: weight for n, weight in weights.items() if not (isinstance(weight, ops.Shared) or is_dense(n, weight))}
    return weights | per_task(others, tasks)


def _seed(seed: int, position: int) -> tf.Tensor:
    return tf.constant([seed, position], tf.int32)


def _truncated_normal(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_truncated_normal(shape, seed, stddev=0.01, alg="philox")


def glorot_uniform(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
    """Glorot & Bengio's uniform initial values of a kernel or matrix [..., in, out]; `seed` is int32 [2]."""
    receptive = math.prod(shape[:-2])
    limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    return tf.random.stateless_uniform(shape, seed, -limit, limit, alg="philox")


def _norm_weights(sizes: list[int], norm: str) -> Weights:
    weights = {}
    for i, size in enumerate(sizes):
        if norm != "None":
            weights[f"model/{i}/beta"] = tf.zeros([size])
        if norm == "layer_norm":
            weights[f"model/{i}/gamma"] = tf.ones([size])
    return weights


def construct_fc_weights(network: Network, seed: int) -> Weights:
    """w1, b1, … of a fully connected network: truncated normal (stddev 0.01), biases zero."""
    sizes = [network.dim_input, *network.dim_hidden, network.dim_output]
    weights = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        weights[f"w{i}"] = _truncated_normal([fan_in, fan_out], _seed(seed, i))
        weights[f"b{i}"] = tf.zeros([fan_out])
    return weights | _norm_weights(sizes[1:-1], network.norm)


def construct_conv_weights(network: Network, seed: int) -> Weights:
    """conv1, b1, … conv4, b4 and the head w5, b5; kernels Glorot uniform, biases zero.

    The head of Omniglot is normal with stddev 1, as in the official code; a flat head is Glorot
    uniform and as large as the last map, so strided miniImageNet works too.
    """
    filters = network.dim_hidden[0]
    weights = {}
    for i in range(1, CONV_BLOCKS + 1):
        fan_in = network.channels if i == 1 else filters
        weights[f"conv{i}"] = glorot_uniform([3, 3, fan_in, filters], _seed(seed, i))
        weights[f"b{i}"] = tf.zeros([filters])
    if network.flat_head:
        weights["w5"] = glorot_uniform([filters * network.map_size**2, network.dim_output], _seed(seed, 5))
    else:
        weights["w5"] = tf.random.stateless_normal([filters, network.dim_output], _seed(seed, 5), alg="philox")
    weights["b5"] = tf.zeros([network.dim_output])
    return weights | _norm_weights([filters] * CONV_BLOCKS, network.norm)


def forward_fc(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """Hidden layers (affine, normalise, ReLU), then an affine output layer."""
    layers = len(network.dim_hidden) + 1
    for i in range(1, layers):
        hidden = ops.product(inp, weights[f"w{i}"]) + weights[f"b{i}"][:, None]
        inp = tf.nn.relu(normalize(hidden, weights, i - 1, network.norm, reference))
    return ops.product(inp, weights[f"w{layers}"]) + weights[f"b{layers}"][:, None]


def forward_conv(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """Four blocks, then the head on the flattened map or on its mean over space."""
    hidden = forward_blocks(inp, weights, network, reference)
    if network.flat_head:
        hidden = tf.reshape(hidden, [inp.shape[0], -1, network.dim_embedding])
    else:
        hidden = tf.reduce_mean(hidden, [2, 3])
    return ops.product(hidden, weights["w5"]) + weights["b5"][:, None]


def forward_blocks(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """The four blocks: [tasks, examples, dim_input] → [tasks, examples, map_size, map_size, filters]."""
    tasks, size = inp.shape[0], network.image_size
    hidden = tf.reshape(inp, [tasks, -1, size, size, network.channels])
    for block in range(CONV_BLOCKS):
        hidden = conv_block(hidden, weights, block, network, reference)
    return hidden


def conv_block(inp: tf.Tensor, weights: Weights, block: int, network: Network, reference=None) -> tf.Tensor:
    """Convolution + bias → normalise → ReLU → pool; without pooling the stride is 2.

    With batch-norm the bias is left out, because the mean takes it away again (its gradient is
    zero), and the shift and the ReLU come after the pooling, where there is a quarter of the
    work: neither changes which entry of a window is the largest.

    Args:
        inp: [tasks, examples, height, width, channels].
        block: 0 to 3; the weights are conv<block + 1>, b<block + 1>.
        reference: see `Network.forward`.
    """
    kernel, bias = weights[f"conv{block + 1}"], weights[f"b{block + 1}"]
    stride = 1 if network.max_pool else 2
    if network.bfloat16:
        inp, kernel = tf.nest.map_structure(lambda numbers: tf.cast(numbers, tf.bfloat16), (inp, kernel))
        rounded = ops.conv2d(inp, kernel, stride)
        hidden = tf.cast(rounded, network.dtype)
    else:
        hidden = ops.conv2d(inp, kernel, stride)
    if network.norm == "batch_norm":
        beta = weights[f"model/{block}/beta"]
        shift = tf.reshape(tf.broadcast_to(beta, [inp.shape[0], beta.shape[-1]]), [-1, 1, 1, 1, beta.shape[-1]])
        if reference is None and hidden.shape[1] is not None:
            window = 2 if network.max_pool else 1
            return ops.standardize_relu_pool(hidden, shift, BATCH_NORM_EPSILON, window)
        # The support set's statistics, or an exported model's unknown number of examples: no second derivative.
        hidden = tf.nn.relu(_standardize_by(hidden[:, :reference], hidden, [1, 2, 3]) + shift)
        return ops.max_pool(hidden) if network.max_pool else hidden
    hidden += bias[:, None, None, None]
    if network.norm == "layer_norm":
        hidden = layer_norm(hidden, [2, 3, 4], weights, block)
    hidden = tf.nn.relu(hidden)
    return ops.max_pool(hidden) if network.max_pool else hidden


def normalize(inp: tf.Tensor, weights: Weights, layer: int, norm: str, reference=None) -> tf.Tensor:
    """Normalises [tasks, examples, units], or does nothing.

    Batch-norm uses the statistics of the batch at hand, in training and in testing
    (transductive), or those of its first `reference` examples. It has a shift but no scale;
    layer-norm has both. A shift or scale is [units], or each task's own, [tasks, units].
    """
    if norm == "batch_norm":
        shift = _beside(inp, weights[f"model/{layer}/beta"])
        if reference is not None:
            return _standardize_by(inp[:, :reference], inp, [1]) + shift
        return _standardize(inp, [1], BATCH_NORM_EPSILON) + shift
    return layer_norm(inp, [2], weights, layer) if norm == "layer_norm" else inp


def layer_norm(inp: tf.Tensor, axes: list[int], weights: Weights, layer: int) -> tf.Tensor:
    """Standardizes every example over `axes`, then scales and shifts its channels, the last axis."""
    scale, shift = (_beside(inp, weights[f"model/{layer}/{name}"]) for name in ("gamma", "beta"))
    return _standardize(inp, axes, LAYER_NORM_EPSILON) * scale + shift


def _beside(inp: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """A scale or shift, [units] or each task's own, [tasks, units], in a shape to compute with [tasks, …, units]."""
    if len(weight.shape) == 1:
        return weight
    return tf.reshape(weight, [weight.shape[0], *[1] * (len(inp.shape) - 2), weight.shape[1]])


def _standardize(inp: tf.Tensor, axes: list[int], epsilon: float) -> tf.Tensor:
    """(x − mean) / √(variance + ε) over `axes`.

    tf.nn.moments would stop the gradient through the mean inside the variance, which leaves
    first derivatives right and second derivatives wrong; the means here are plain.
    """
    centred = inp - tf.reduce_mean(inp, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon)


def _standardize_by(statistics: tf.Tensor, inp: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Batch-norm of `inp` with the mean and variance that `statistics` has over `axes`."""
    mean = tf.reduce_mean(statistics, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(statistics - mean), axes, keepdims=True)
    return (inp - mean) * tf.math.rsqrt(variance + BATCH_NORM_EPSILON)
