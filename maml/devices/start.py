"""The strategy that the flags and the environment ask for."""

import os
import re

import tensorflow as tf

from maml.devices.cluster import Cluster, agreed, from_environment, together
from maml.errors import UserError
from maml.machine import versions

NO_PROXY = "no_grpc_proxy"  # hosts that gRPC reaches without one


def strategy(devices: str = "", cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """Starts the devices of this process and the connection to other workers; before anything is computed.

    `with strategy().scope():` around `maml.train` divides its tasks.

    Args:
        devices: "" for all GPUs of the machine (or its processor), how many GPUs, or cpu:N for N replicas on the
            processor.
        cluster: of workers that have met; None: those that TF_CONFIG or Slurm names meet now, if they name any.

    Raises:
        UserError: there are fewer devices.
    """
    if cluster is None and (cluster := from_environment()):
        agreed(cluster, versions(), dict)
        with together(cluster):
            return strategy(devices, cluster)
    kind = _choose(devices)
    tf.get_logger().setLevel("ERROR")  # else every exchange is announced
    if cluster:
        _without_proxy(cluster)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
            task_type="worker",
            task_id=cluster.number,
            num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
            rpc_layer="grpc",
        )
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()


def _choose(asked: str) -> str:
    """Makes the devices visible that are to be used; their kind."""
    found = re.fullmatch(r"(cpu:)?(\d+)", asked.lower()) if asked else None
    if asked and not (found and int(found[2])):
        raise UserError(f"--devices={asked}: must be a number of GPUs, or cpu:N for N replicas on the processor")
    gpus = tf.config.list_physical_devices("GPU")
    if found and found[1]:
        tf.config.set_visible_devices([], "GPU")
        processor = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * int(found[2])
        try:
            tf.config.set_logical_device_configuration(processor, parts)
        except RuntimeError as error:
            raise UserError(f"--devices={asked}: TensorFlow has computed already; ask before that") from error
        return "CPU"
    if found and int(found[2]) > len(gpus):
        raise UserError(
            f"--devices={asked}: this machine has {len(gpus)} GPUs that TensorFlow can use; "
            f"--devices=cpu:{found[2]} makes replicas on its processor"
        )
    if "SLURM_LOCALID" in os.environ and len(gpus) > 1 and not found:
        gpus = [gpus[int(os.environ["SLURM_LOCALID"]) % len(gpus)]]  # a process each
    if found:
        gpus = gpus[: int(found[2])]
    if gpus:
        tf.config.set_visible_devices(gpus, "GPU")
    return "GPU" if gpus else "CPU"


def _without_proxy(cluster: Cluster) -> None:
    """A proxy for the web, which gRPC would follow, does not lead to the workers."""
    hosts = {address.rpartition(":")[0] for address in cluster.addresses}
    known = [host for host in os.environ.get(NO_PROXY, "").split(",") if host]
    os.environ[NO_PROXY] = ",".join(sorted(hosts.union(known)))
