"""The replicas that share a batch of tasks: the devices of this process, and those of the other workers.

One replica is the rule, and then nothing here does anything. Several come from the `tf.distribute.Strategy` in whose
scope a training runs: each computes its part of the batch, and what they found is summed. An episode is a function of
(seed, split, index), so no data travels; every worker makes the same update of its own copy of the state. The means of
the parts are float64, see `maml.parallel`, so the numbers do not depend on how many replicas there are, but for
rounding where XLA compiles the network.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from maml.data_generator import WHOLE, Part
from maml.errors import UserError

# What TensorFlow raises where another worker is gone.
LOST = (
    *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError),
    *(tf.errors.DeadlineExceededError, tf.errors.InternalError, tf.errors.UnknownError),
)


def count() -> int:
    """Replicas of all workers together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def workers() -> int:
    """Processes that share the training."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return sum(map(len, resolver.cluster_spec().as_dict().values())) or 1 if resolver else 1


def is_chief() -> bool:
    """Whether this is the worker that writes and prints."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return not (resolver and resolver.task_id)


def silent() -> bool | None:
    """What tqdm wants to know as `disable`: None, only outside of terminals, or always."""
    return None if is_chief() else True


def total(compute: Callable[[Part], Any]) -> Any:
    """The sum over the replicas of what each computes of its part of a batch.

    It is exchanged as one tensor: an exchange of each tensor by itself takes five times as long.

    Args:
        compute: returns a structure of tensors of one type, whose shapes are the same on all replicas.
    """
    replicas, found = count(), []
    if replicas == 1:
        return compute(WHOLE)

    def of_replica() -> tf.Tensor:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        found.append(compute(Part(number, replicas)))
        return tf.concat([tf.reshape(tensor, [-1]) for tensor in tf.nest.flatten(found[-1])], 0)

    strategy = tf.distribute.get_strategy()
    flat = strategy.run(tf.autograph.experimental.do_not_convert(of_replica))
    summed = strategy.reduce(tf.distribute.ReduceOp.SUM, flat, axis=None)
    tensors = tf.nest.flatten(found[-1])
    parts = tf.split(summed, [tensor.shape.num_elements() for tensor in tensors])
    whole = [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    return tf.nest.pack_sequence_as(found[-1], whole)


def mean(compute: Callable[[Part], Any]) -> Any:
    """The mean over the replicas of what each computes of its part of a batch; see `total`."""
    replicas = count()
    return tf.nest.map_structure(lambda value: value / replicas, total(compute)) if replicas > 1 else compute(WHOLE)


def together(compute: Callable[[Part], Any]) -> Any:
    """What each replica computes of its part of a batch, behind one another: [n, …] each → [replicas · n, …].

    It is the sum of tensors that are zero but for the replica's own rows: to the bit what was computed.
    """
    if count() == 1:
        return compute(WHOLE)

    def placed(part: Part) -> Any:
        def of(rows: tf.Tensor) -> tf.Tensor:
            own = tf.reshape(tf.equal(tf.range(part.parts), part.number), [-1, *[1] * len(rows.shape)])
            return tf.reshape(tf.where(own, rows[None], tf.zeros_like(rows[None])), [-1, *rows.shape[1:]])

        return tf.nest.map_structure(of, compute(part))

    return total(placed)


def from_chief(values: Any) -> Any:
    """The chief's tensors, on every worker, to the bit.

    Args:
        values: a structure of tensors (or of what can become one), of the same shapes everywhere.
    """
    if workers() == 1:
        return values
    tensors = [tf.convert_to_tensor(value) for value in tf.nest.flatten(values)]

    @tf.function(autograph=False)
    def sent() -> list[tf.Tensor]:
        bits = [tf.bitcast(tensor, tf.int32) for tensor in tensors]
        return total(lambda part: [tf.where(tf.equal(part.number, 0), each, tf.zeros_like(each)) for each in bits])

    received = [tf.bitcast(bits, tensor.dtype) for bits, tensor in zip(sent(), tensors, strict=True)]
    return tf.nest.pack_sequence_as(values, received)


def number_of_chief(number: int) -> int:
    """The chief's number, on every worker."""
    return int(from_chief(tf.constant(number, tf.int32)))


@tf.function(autograph=False, reduce_retracing=True)
def _counted(flag: tf.Tensor) -> tf.Tensor:
    return total(lambda part: flag)


def any_of(flag: bool) -> bool:
    """Whether it is true on any worker; returns when all have asked."""
    return flag if workers() == 1 else bool(_counted(tf.constant(int(flag))) > 0)


def check_alike(facts: Mapping[str, Any]) -> None:
    """Raises UserError, on every worker, that names what is not the same on all of them."""
    if workers() == 1:
        return
    for name, value in facts.items():
        digest = int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=4).digest(), "big") >> 1
        if any_of(digest != number_of_chief(digest)):
            raise UserError(f"not all workers have the same {name}: start all of them with the same command and data")


def check_divides(tasks: int, accumulate: int = 1) -> None:
    """Raises UserError if a meta-batch does not divide over the replicas, and what each computes one after another."""
    parts = count() * accumulate
    if tasks % parts:
        below, above = tasks // parts * parts, -(-tasks // parts) * parts
        near = f"{below} or {above}" if below else str(above)
        each = f" (times --accumulate={accumulate})" if accumulate > 1 else ""
        raise UserError(
            f"--meta_batch_size={tasks} does not divide over {count()} replicas{each}: choose {near}, or another "
            "number of --devices or workers"
        )


def lost(error: Exception) -> UserError | None:
    """What to say if an error means that another worker is gone; None if it does not."""
    if workers() == 1 or not isinstance(error, LOST):
        return None
    return UserError(
        "another worker is gone; start all of them again, and the training goes on from its newest checkpoint"
    )
