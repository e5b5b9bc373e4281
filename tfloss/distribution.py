"""A distribution strategy from a name, and what tfloss must know about one. Host code.

strategy = tfloss.make_strategy("mirrored", replicas=2)
with strategy.scope():
    model = Classifier()
"""

import json
import os
from typing import Any

import tensorflow as tf

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")

_REFUSED = (
    tf.distribute.ParameterServerStrategy,
    tf.compat.v1.distribute.experimental.ParameterServerStrategy,
    tf.distribute.experimental.CentralStorageStrategy,
)


def make_strategy(name: str = "auto", replicas: int | None = None) -> tf.distribute.Strategy:
    """A strategy from its name. Call it before anything else uses TensorFlow's devices.

    Args:
      name: one of
        "auto": multi_worker where the variable TF_CONFIG describes a cluster of several
          workers, mirrored with several GPUs or `replicas` > 1, else one;
        "one": TensorFlow's default strategy: one replica, on the GPU if there is one;
        "mirrored": a replica on each GPU of this machine, or on each of `replicas` logical
          CPU devices, which are made here, if it has no GPU;
        "multi_worker": the replicas of all workers that TF_CONFIG names;
        "tpu": the TPU named by the variable TPU_NAME, or this machine's own.
      replicas: how many replicas, for "auto", "one" and "mirrored". None: one for each GPU,
        or one for each logical CPU device configured so far.

    Raises:
      ValueError: an unknown name, a number of replicas that the machine can't give, or
        devices that are not there.
    """
    if replicas is not None and replicas < 1:
        raise ValueError(f"replicas must be at least 1, got {replicas}.")
    if name == "auto":
        name = _choose(replicas)
    if name in ("multi_worker", "tpu") and replicas is not None:
        raise ValueError(
            f"replicas={replicas} can't be chosen with strategy {name!r}: it has one replica "
            "for each accelerator. Leave it out."
        )
    if name == "one":
        if replicas not in (None, 1):
            raise ValueError(
                f"Strategy 'one' has one replica, but replicas={replicas}. Use 'mirrored'."
            )
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multi_worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    raise ValueError(f"Unknown strategy {name!r}; choose one of {', '.join(STRATEGIES)}.")


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for a strategy whose updates are not those of one global batch."""
    if isinstance(strategy, _REFUSED):
        raise ValueError(
            f"tfloss does not train under {type(strategy).__name__}: its replicas do not keep "
            "the same weights and average each step's gradients. Use MirroredStrategy, "
            "MultiWorkerMirroredStrategy or TPUStrategy (tfloss.make_strategy)."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files: always, unless there are several.

    Under several workers it is the task "chief", or worker 0 where there is no chief.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    resolver: Any = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    chiefs = {"chief", "master"}
    if chiefs & set(resolver.cluster_spec().jobs):
        return resolver.task_type in chiefs
    return resolver.task_type == "worker" and resolver.task_id == 0


def _choose(replicas: int | None) -> str:
    if _cluster_size() > 1:
        return "multi_worker"
    several = len(tf.config.list_physical_devices("GPU")) > 1 if replicas is None else replicas > 1
    return "mirrored" if several else "one"


def _mirrored(replicas: int | None) -> tf.distribute.Strategy:
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        if (replicas or 0) > gpus:
            raise ValueError(
                f"replicas={replicas}, but this machine has {gpus} GPU{'s' * (gpus > 1)}. Ask for "
                "fewer, or hide the GPUs (CUDA_VISIBLE_DEVICES=-1) to use logical CPU devices."
            )
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas or gpus)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = len(tf.config.get_logical_device_configuration(cpu) or [None])
    replicas = configured if replicas is None else replicas
    if replicas > configured:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
            )
        except RuntimeError:
            raise ValueError(
                f"TensorFlow has started already, with {configured} logical CPU "
                f"device{'s' * (configured > 1)}, so there can't be {replicas} replicas. Make the "
                "strategy first, before any tensor, variable, model or data set."
            ) from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _cluster_size() -> int:
    """The number of workers that TF_CONFIG names; 0 without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0
    try:
        cluster = json.loads(text).get("cluster", {})
        return sum(len(cluster.get(job, [])) for job in ("chief", "master", "worker"))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"The variable TF_CONFIG can't be read ({error}): {text}") from None


def _multi_worker() -> tf.distribute.Strategy:
    if not _cluster_size():
        raise ValueError(
            "Strategy 'multi_worker' needs to know its workers: set the variable TF_CONFIG on "
            'each of them, for instance {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "at program startup" not in str(error):
            raise
        raise ValueError(
            "TensorFlow has started already, too late to connect to other workers. Make the "
            "strategy first, before any tensor, variable, model or data set."
        ) from None


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME") or "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0].split(" with these attrs")[0]
        raise ValueError(
            f"Strategy 'tpu' found no TPU {name!r}; set the variable TPU_NAME to its name on a "
            f"machine that has one, or use another strategy (TensorFlow says: {reason})."
        ) from None
    return tf.distribute.TPUStrategy(resolver)
