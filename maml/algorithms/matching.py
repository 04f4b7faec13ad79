"""Matching networks: a query takes the labels of the support examples, in proportion to its attention to them.

Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, *Matching Networks for One Shot Learning*,
NIPS 2016.

The paper's attention is a softmax of plain cosines. These lie in [−1, 1], so that of N classes
with an example each the right one cannot have more than e / (e + (N − 1)/e) of it: 0.65 for N = 5.
The loss then cannot fall below 0.43, and pushes embeddings apart that are right already; it learns
slowly. `--attention_scale` multiplies the cosine by a fixed or a learned number. `--distance=l2`
needs none, since an embedding can grow.

Batch-norm takes its statistics from support and query set together, see `maml/metric.py`.
"""

import tensorflow as tf

from maml.algorithms.metric import MetricLearner
from maml.models.official import glorot_uniform
from maml.models.protocol import Weights

Step = tuple[tf.Tensor, tf.Tensor]


class MatchingNetworks(MetricLearner):
    """The learner; with `--fce`, full context embeddings."""

    def construct_weights(self, seed: int) -> Weights:
        """Those of the embedding, and of the three LSTMs of full context embeddings."""
        weights = super().construct_weights(seed)
        if self.config.fce:
            dim = self.model.dim_embedding
            # Rows: the input's, then the recurrent ones: the state's and, for the attention LSTM, the read-out's.
            rows = {"forward": 2 * dim, "backward": 2 * dim, "attention": 3 * dim}
            for position, name in enumerate(rows):
                kernel = glorot_uniform([rows[name], 4 * dim], tf.constant([seed, 100 + position]))
                weights[f"{name}/kernel"] = tf.cast(kernel, self.config.dtype)
                weights[f"{name}/bias"] = tf.zeros([4 * dim], self.config.dtype)
        return weights

    def logits(self, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """Logarithms of the attention that each class has; arguments as in `MetricLearner.logits`.

        P(y | x) = Σ_i a(x, x_i) y_i, a = softmax of the similarity, the paper's equations 1 and 2.
        """
        if self.config.fce:
            support = contextual_support(support, weights)
            query = contextual_query(query, support, weights, self.config.unrolling_steps)
        return class_attention(self.similarity(weights, query, support), labels)


def class_attention(similarity: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Log Σ_{i of class k} softmax_i(similarity), for every query and class.

    Args:
        similarity: [queries, examples].
        labels: one-hot [examples, N].

    Returns:
        [queries, N].
    """
    log_attention = tf.nn.log_softmax(similarity)[..., None]
    of_class = labels > 0
    nothing = tf.constant(log_attention.dtype.min, log_attention.dtype)
    return tf.reduce_logsumexp(tf.where(of_class, log_attention, nothing), 1)


def contextual_support(support: tf.Tensor, weights: Weights) -> tf.Tensor:
    """g(x_i) = →h_i + ←h_i + g'(x_i), of a bidirectional LSTM over the support set in its random order.

    Args:
        support: g', [examples, dim].
    """
    ahead = _run_lstm(support, weights, "forward")
    back = _run_lstm(tf.reverse(support, [0]), weights, "backward")
    return ahead + tf.reverse(back, [0]) + support


def contextual_query(query: tf.Tensor, support: tf.Tensor, weights: Weights, steps: int) -> tf.Tensor:
    """f(x) = h after `steps` steps of an LSTM that reads the support set with attention.

    ĥ, c = LSTM(f'(x), [h, r], c);  h = ĥ + f'(x);  r = Σ_i softmax_i(h·g(x_i)) g(x_i).
    h and c are zero at the start; the first r is therefore the support set's mean.

    Args:
        query: f', [queries, dim].
        support: g, [examples, dim].
    """
    hidden, cell = tf.zeros_like(query), tf.zeros_like(query)
    for _ in range(steps):
        attention = tf.nn.softmax(tf.matmul(hidden, support, transpose_b=True))
        recurrent = tf.concat([hidden, attention @ support], -1)
        out, cell = lstm_step(query, recurrent, cell, weights, "attention")
        hidden = out + query
    return hidden


def lstm_step(inp: tf.Tensor, recurrent: tf.Tensor, cell: tf.Tensor, weights: Weights, name: str) -> Step:
    """One step of an LSTM: c = σ(f + 1) c + σ(i) tanh(g), h = σ(o) tanh(c).

    Args:
        inp, recurrent: [..., n] each; [i, f, g, o] is affine in both.
        cell: [..., dim].

    Returns:
        h and c, [..., dim] each.
    """
    gates = tf.concat([inp, recurrent], -1) @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
    i, f, g, o = tf.split(gates, 4, -1)
    cell = tf.sigmoid(f + 1) * cell + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(cell), cell


def _run_lstm(inp: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    """The outputs [steps, dim] of an LSTM over [steps, dim], from zero."""

    def step(state: Step, row: tf.Tensor) -> Step:
        return lstm_step(row, *state, weights, name)

    zeros = tf.zeros([1, inp.shape[-1]], inp.dtype)
    outputs, _ = tf.scan(step, inp[:, None], (zeros, zeros))
    return outputs[:, 0]
