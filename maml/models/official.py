"""The official networks on plain dicts of tensors.

A `Weights` dict holds the adapted weights under the official names (`w1`, `b1`, … or `conv1`,
`b1`, …, `w5`, `b5`) and the normalizations' `model/<i>/beta` and `model/<i>/gamma`, which are
meta-learned but not adapted by MAML.

Source: the official `maml.py` (`construct_*`, `forward_*`) and `utils.py` (`conv_block`,
`normalize`).
"""

import dataclasses
import itertools
import math

import tensorflow as tf

from maml import machine
from maml.config import Config
from maml.kernels.batch_norm import batch_norm, batch_norm_pool, batch_norm_pool_relu, standardize
from maml.kernels.convolution import conv2d
from maml.kernels.dense import product
from maml.kernels.pooling import max_pool
from maml.models.protocol import Body, Model, Weights

BATCH_NORM_EPSILON = 0.001
LAYER_NORM_EPSILON = 1e-12
PLUS_PLUS_EPSILON = 1e-5
LEAK = 0.01  # of MAML++: the slope of its ReLU below zero
CONV_BLOCKS = 4


@dataclasses.dataclass(frozen=True)
class Network(Model):
    """A network of the official code: everything that decides which weights it has.

    dim_input: elements of an example (image_size² · channels for images).
    dim_output: outputs of an example.
    dim_hidden: units of the hidden layers (fully connected) or filters of every block.
    image_size, channels: of the images; 0 where there are none.
    bfloat16: the convolutions round their inputs and kernels to bfloat16.
    normalization: mean and standard deviation of each channel, by which images are normalized first.
    scale: batch-norm has a scale, too.
    plus_plus: blocks and initial values of the official MAML++ code: leaky ReLU, another ε, a head that is Glorot
        uniform for Omniglot, too.
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
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    scale: bool = False
    plus_plus: bool = False

    @classmethod
    def from_config(cls, config: Config) -> "Network":
        """The network that the official code builds for this setting."""
        if not config.classification:
            dim_input = 3 if config.baseline == "oracle" else 1
            return cls("fc", dim_input, 1, (40, 40), config.norm, dtype=config.dtype, scale=config.per_step_bn)
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
            # The pooled map of an Omniglot drawing is a single pixel, flat or not.
            flat_head=config.datasource != "omniglot",
            dtype=config.dtype,
            bfloat16=config.bfloat16,
            normalization=config.normalization,
            scale=config.per_step_bn,
            plus_plus=config.conv and config.conventions == "maml++",
        )

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest matrix of a fully connected network."""
        sizes = [self.dim_input, *self.dim_hidden, self.dim_output]
        return max(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(sizes))

    @property
    def map_size(self) -> int:
        """Height and width of the last block's feature maps."""
        size = self.image_size
        for _ in range(CONV_BLOCKS):
            size = size // 2 if self.max_pool else math.ceil(size / 2)
        return size

    @property
    def dim_embedding(self) -> int:
        """Elements of the last block's feature maps of an example."""
        return self.map_size**2 * self.dim_hidden[0]

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of an example: images are flat."""
        return (self.dim_input,)

    @property
    def layers(self) -> int:
        """Layers or blocks with weights of their own, the head included."""
        return CONV_BLOCKS + 1 if self.kind == "conv" else len(self.dim_hidden) + 1

    @property
    def head(self) -> frozenset[str]:  # type: ignore[override]
        """The last layer's matrix and bias."""
        return frozenset([f"w{self.layers}", f"b{self.layers}"])

    @property
    def adapted(self) -> frozenset[str]:  # type: ignore[override]
        """Kernels, matrices and biases; not the normalizations' shifts and scales."""
        name = "conv" if self.kind == "conv" else "w"
        body = [f"{kind}{layer}" for layer in range(1, self.layers) for kind in (name, "b")]
        return self.head.union(body)

    @property
    def norms(self) -> frozenset[str]:  # type: ignore[override]
        """The shift of every normalization, and the scale of those that have one."""
        kinds = {"None": (), "layer_norm": ("beta", "gamma")}.get(self.norm, ("beta", "gamma")[: 1 + self.scale])
        return frozenset(f"model/{layer}/{kind}" for layer in range(self.layers - 1) for kind in kinds)

    @property
    def epsilon(self) -> float:
        """What batch-norm adds to the variance."""
        return PLUS_PLUS_EPSILON if self.plus_plus else BATCH_NORM_EPSILON

    @property
    def compiled(self) -> bool:  # type: ignore[override]
        """Fully connected networks are, and on a GPU all."""
        return self.kind == "fc" or machine.on_gpu()

    def init(self, seed: int) -> Weights:
        """Fresh weights, a function of `seed` alone, in `dtype`."""
        construct = construct_conv_weights if self.kind == "conv" else construct_fc_weights
        return {name: tf.cast(weight, self.dtype) for name, weight in construct(self, seed).items()}

    def apply(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [examples, dim_output] of one task's inputs [examples, dim_input]; see `Model.apply`."""
        forward = forward_conv if self.kind == "conv" else forward_fc
        return forward(self.normalized(inputs), weights, self, reference)

    def features(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """What the last layer sees: [examples, dim_input] → [examples, features]."""
        features = features_conv if self.kind == "conv" else features_fc
        return features(self.normalized(inputs), weights, self, reference)

    def embed(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """The last block's feature maps, flattened: [examples, dim_input] → [examples, dim_embedding]."""
        return tf.reshape(forward_blocks(self.normalized(inputs), weights, self, reference), [-1, self.dim_embedding])

    def parts(self) -> tuple[Body, Model]:
        """The layers before the last one, and the last one."""
        return self.features, Head(self)

    def normalized(self, inputs: tf.Tensor) -> tf.Tensor:
        """Images [examples, dim_input] with each channel's mean subtracted, divided by its deviation, if so wanted."""
        if self.normalization is None:
            return inputs
        mean, deviation = (tf.constant(values, inputs.dtype) for values in self.normalization)
        images = tf.reshape(inputs, [-1, self.dim_input // self.channels, self.channels])
        return tf.reshape((images - mean) / deviation, [-1, self.dim_input])

    def checkpoint_names(self, weights: Weights) -> dict[str, str]:
        """The official variables: {"conv1": "model/conv1", "b1": "model/Variable", …}.

        The official code names kernels and a convolutional network's head itself; TensorFlow named the others in the
        order in which they were made. The normalizations of a fully connected network are called after the scope
        of their layer, which is i + 1 from the second on: `model/0`, `model/2`, `model/3`, ….
        """
        names, unnamed = {}, 0
        for name in weights:
            if name.startswith("model/") and self.kind == "fc":
                _, layer, kind = name.split("/")
                names[name] = f"model/{int(layer) + (layer != '0')}/{kind}"
            elif name not in self.adapted:
                names[name] = name
            elif self.kind == "conv" and (name in self.head or name.startswith("conv")):
                names[name] = f"model/{name}"
            else:
                names[name] = "model/Variable" + (f"_{unnamed}" if unnamed else "")
                unnamed += 1
        return names


def _seed(seed: int, position: int) -> tf.Tensor:
    return tf.constant([seed, position], tf.int32)


def _truncated_normal(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_truncated_normal(shape, seed, stddev=0.01, alg="philox")


def glorot_uniform(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
    """Glorot & Bengio's uniform initial values of a kernel or matrix [..., in, out]; `seed` is int32 [2]."""
    receptive = math.prod(shape[:-2])
    limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    return tf.random.stateless_uniform(shape, seed, -limit, limit, alg="philox")


def _norm_weights(sizes: list[int], network: Network) -> Weights:
    initial = {"beta": tf.zeros, "gamma": tf.ones}
    return {
        f"model/{i}/{kind}": fresh([size])
        for i, size in enumerate(sizes)
        for kind, fresh in initial.items()
        if f"model/{i}/{kind}" in network.norms
    }


@dataclasses.dataclass(frozen=True)
class Head(Model):
    """The last layer of a network, as a model of the features before it.

    network: whose last layer it is.
    """

    network: Network

    @property
    def adapted(self) -> frozenset[str]:  # type: ignore[override]
        """Its matrix and bias."""
        return self.network.head

    @property
    def head(self) -> frozenset[str]:  # type: ignore[override]
        """All of it."""
        return self.network.head

    def init(self, seed: int) -> Weights:
        """The network's own first values."""
        return {name: weight for name, weight in self.network.init(seed).items() if name in self.head}

    def apply(self, weights: Weights, inputs: tf.Tensor, reference: int | tf.Tensor | None = None) -> tf.Tensor:
        """Outputs [examples, dim_output] of features [examples, …]."""
        return forward_head(inputs, weights, self.network)


def construct_fc_weights(network: Network, seed: int) -> Weights:
    """w1, b1, … of a fully connected network: truncated normal (stddev 0.01), biases zero."""
    sizes = [network.dim_input, *network.dim_hidden, network.dim_output]
    weights = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        weights[f"w{i}"] = _truncated_normal([fan_in, fan_out], _seed(seed, i))
        weights[f"b{i}"] = tf.zeros([fan_out])
    return weights | _norm_weights(sizes[1:-1], network)


def construct_conv_weights(network: Network, seed: int) -> Weights:
    """conv1, b1, … conv4, b4 and the head w5, b5; kernels Glorot uniform, biases zero.

    The head of Omniglot is normal with stddev 1, as in the official code (but not that of MAML++); a flat head is
    Glorot uniform and as large as the last map, so strided miniImageNet works too.
    """
    filters = network.dim_hidden[0]
    weights = {}
    for i in range(1, CONV_BLOCKS + 1):
        fan_in = network.channels if i == 1 else filters
        weights[f"conv{i}"] = glorot_uniform([3, 3, fan_in, filters], _seed(seed, i))
        weights[f"b{i}"] = tf.zeros([filters])
    inputs = network.dim_embedding if network.flat_head else filters
    if network.flat_head or network.plus_plus:
        weights["w5"] = glorot_uniform([inputs, network.dim_output], _seed(seed, 5))
    else:
        weights["w5"] = tf.random.stateless_normal([inputs, network.dim_output], _seed(seed, 5), alg="philox")
    weights["b5"] = tf.zeros([network.dim_output])
    return weights | _norm_weights([filters] * CONV_BLOCKS, network)


def forward_fc(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """Hidden layers (affine, normalize, ReLU), then an affine output layer: [examples, dim_input] → [examples, N]."""
    return forward_head(features_fc(inp, weights, network, reference), weights, network)


def forward_conv(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """Four blocks, then the head on the flattened feature maps or on their mean over space."""
    return forward_head(features_conv(inp, weights, network, reference), weights, network)


def features_fc(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """The hidden layers of a fully connected network: [examples, dim_input] → [examples, units]."""
    for i in range(1, network.layers):
        hidden = add_bias(product(inp, weights[f"w{i}"]), weights[f"b{i}"], network.norm)
        inp = tf.nn.relu(normalize(hidden, weights, i - 1, network, reference))
    return inp


def features_conv(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """The blocks' feature maps, flattened or averaged over space: [examples, dim_input] → [examples, features]."""
    hidden = forward_blocks(inp, weights, network, reference)
    return tf.reshape(hidden, [-1, network.dim_embedding]) if network.flat_head else tf.reduce_mean(hidden, [1, 2])


def forward_head(features: tf.Tensor, weights: Weights, network: Network) -> tf.Tensor:
    """The last layer, which is affine: [examples, features] → [examples, dim_output]."""
    matrix, bias = weights[f"w{network.layers}"], weights[f"b{network.layers}"]
    return (features @ matrix if network.kind == "conv" else product(features, matrix)) + bias


def forward_blocks(inp: tf.Tensor, weights: Weights, network: Network, reference=None) -> tf.Tensor:
    """The four blocks: [examples, dim_input] → [examples, map_size, map_size, filters]."""
    size = network.image_size
    examples = -1 if inp.shape[0] is None else inp.shape[0]
    hidden = tf.reshape(inp, [examples, size, size, network.channels])
    for block in range(CONV_BLOCKS):
        hidden = conv_block(hidden, weights, block, network, reference)
    return hidden


def conv_block(inp: tf.Tensor, weights: Weights, block: int, network: Network, reference=None) -> tf.Tensor:
    """Convolution + bias → normalize → pool → ReLU (of MAML++ leaky); without pooling the stride is 2.

    Args:
        inp: [examples, height, width, channels].
        block: 0 to 3; the weights are conv<block + 1>, b<block + 1>.
        reference: see `Model.apply`.
    """
    kernel, bias = weights[f"conv{block + 1}"], weights[f"b{block + 1}"]
    stride = 1 if network.max_pool else 2
    if network.bfloat16:
        rounded = conv2d(tf.cast(inp, tf.bfloat16), tf.cast(kernel, tf.bfloat16), stride)
        hidden = tf.cast(rounded, network.dtype)
    else:
        hidden = conv2d(inp, kernel, stride)
    hidden = add_bias(hidden, bias, network.norm)
    # The pooling comes before the activation, and before the shift and scale: it keeps the order of what it compares.
    if network.norm == "batch_norm" and network.max_pool:
        if not (network.scale or network.plus_plus):
            return batch_norm_pool_relu(hidden, network.epsilon, weights[f"model/{block}/beta"], reference)
        scale = weights.get(f"model/{block}/gamma")
        hidden = shifted(batch_norm_pool(hidden, network.epsilon, scale, reference), weights, block, network)
    else:
        hidden = normalize(hidden, weights, block, network, reference)
        hidden = max_pool(hidden) if network.max_pool else hidden
    return tf.nn.leaky_relu(hidden, LEAK) if network.plus_plus else tf.nn.relu(hidden)


def add_bias(hidden: tf.Tensor, bias: tf.Tensor, norm: str) -> tf.Tensor:
    """Adds a bias [channels], unless batch-norm follows, whose mean takes it away again.

    Its gradient is zero there, but for rounding, which Adam would turn into steps as long as any other.
    """
    return hidden if norm == "batch_norm" else hidden + bias


def normalize(inp: tf.Tensor, weights: Weights, layer: int, network: Network, reference=None) -> tf.Tensor:
    """Normalizes [examples, …, channels], or does nothing.

    Batch-norm standardizes every channel by the statistics of the batch at hand, in training and in testing
    (transductive), or by those of its first `reference` examples. It has a shift, but officially no scale.
    Layer-norm standardizes every example, and has both.
    """
    if network.norm == "None":
        return inp
    if network.norm == "batch_norm":
        standard = batch_norm(inp, network.epsilon, reference)
    else:
        standard = standardize(inp, list(range(1, len(inp.shape))), LAYER_NORM_EPSILON)
    return shifted(standard, weights, layer, network)


def shifted(standard: tf.Tensor, weights: Weights, layer: int, network: Network) -> tf.Tensor:
    """Standardized values times the normalization's scale, where it has one, plus its shift."""
    scale = f"model/{layer}/gamma"
    scaled = standard * weights[scale] if scale in network.norms else standard
    return scaled + weights[f"model/{layer}/beta"]
