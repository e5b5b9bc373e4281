"""Makes distribution strategies by name, and answers questions about them. Host code.

strategy = tfloss.make_strategy("mirrored", replicas=2)
with strategy.scope():
    model = Classifier()
"""

import faulthandler
import math
import os
import signal
import threading
import zlib
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.command_variables import (
    INSPECT_VARIABLE,
    RANGE_VARIABLE,
    REPLAY_VARIABLE,
    REPLICAS_VARIABLE,
)
from tfloss.common.logger import logger
from tfloss.distribute.cluster import Cluster, find_cluster, no_cluster_advice
from tfloss.distribute.control_channel import ControlChannel, send, worker_timeout
from tfloss.distribute.lost_workers import LostWorkers, error_text
from tfloss.distribute.rendezvous import wait_for_workers
from tfloss.distribute.start_sentinel import ended_with_any
from tfloss.distribute.strategy_names import STRATEGY_NAMES
from tfloss.errors import ClusterError
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_REFUSED = (
    tf.distribute.ParameterServerStrategy,
    tf.compat.v1.distribute.experimental.ParameterServerStrategy,
    tf.distribute.experimental.CentralStorageStrategy,
)
_DEFAULT_CONNECT_TIMEOUT = 300.0  # seconds
_MIN_START_SECONDS = 60.0  # for TensorFlow to connect, once all workers are there
_CONTROL: "WeakKeyDictionary[Any, tuple[ControlChannel, LostWorkers]]" = WeakKeyDictionary()


@filtered_tracebacks
def make_strategy(
    name: str = "auto", replicas: int | None = None, connect_timeout: float | None = None
) -> tf.distribute.Strategy:
    """Makes a strategy. Call it before anything else uses TensorFlow's devices.

    With several workers, it returns when all of them have called it (see
    `tfloss.distribute.rendezvous`).

    Args:
      name: One of these:
        "auto": "multi_worker" if the environment variables describe several workers, "mirrored" if
          there are several GPUs or `replicas` is more than 1, else "one".
        "one": TensorFlow's default strategy: one replica, on the GPU if there is one.
        "mirrored": A replica on each GPU of this machine. Without a GPU, a replica on each of
          `replicas` logical CPU devices, which are created.
        "multi_worker": The replicas of all workers that the environment variables describe:
          TF_CONFIG, TFLOSS_WORKERS with JOB_COMPLETION_INDEX, or Slurm's variables (see
          `tfloss.distribute.cluster`). It sets TF_CONFIG for TensorFlow. It also seeds Python,
          NumPy and TensorFlow with the same number on all workers, so that a shuffle without a seed
          gives the same order on all of them.
        "tpu": The TPU that the variable TPU_NAME names, or this machine's own.
      replicas: The number of replicas, for "auto", "one" and "mirrored". None: one for each GPU, or
        one for each logical CPU device that is already configured.
      connect_timeout: Seconds to wait for the other workers. None: the value of the variable
        TFLOSS_CONNECT_TIMEOUT, or 300.

    Returns:
      The strategy.

    Raises:
      ValueError: The name is unknown, the machine doesn't have that many replicas, or TensorFlow
        has started already.
      ClusterError: The variables that describe the workers are invalid, incomplete or missing. It
        is a ValueError.
      MissingWorkersError: Other workers did not connect in time. It has their addresses.
      SystemExit: SIGTERM arrived during the wait for other workers.
    """
    if replicas is not None and replicas < 1:
        raise ValueError(f"replicas must be at least 1, got {replicas}.")
    if os.environ.get(REPLICAS_VARIABLE):  # the script runs inside of the scope of a strategy
        return tf.distribute.get_strategy()
    cluster = find_cluster() if name in ("auto", "multi_worker") else None
    if name == "auto":
        name = _choose(replicas, cluster)
    if name in ("multi_worker", "tpu") and replicas is not None:
        raise ValueError(
            f"replicas={replicas} can't be chosen with strategy {name!r}: it has one replica "
            "for each accelerator. Leave replicas out."
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
        # `tfloss replay` runs the replicas one by one; `tfloss inspect` and `tfloss lr-range` start
        # a single process.
        if any(map(os.environ.get, (REPLAY_VARIABLE, INSPECT_VARIABLE, RANGE_VARIABLE))):
            return tf.distribute.get_strategy()
        return _multi_worker(cluster, connect_timeout)
    if name == "tpu":
        return _tpu()
    raise ValueError(f"Unknown strategy {name!r}; choose one of {', '.join(STRATEGY_NAMES)}.")


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Refuses a strategy whose updates differ from those of one global batch.

    Args:
      strategy: The strategy of a run.

    Raises:
      ValueError: It is no strategy, or has parameter servers or central storage.
    """
    if isinstance(strategy, _REFUSED):
        raise ValueError(
            f"tfloss does not train under {type(strategy).__name__}: its replicas do not keep "
            "the same weights and average each step's gradients. Use MirroredStrategy, "
            "MultiWorkerMirroredStrategy or TPUStrategy (tfloss.make_strategy)."
        )
    if not isinstance(strategy, tf.distribute.Strategy | tf.compat.v1.distribute.Strategy):
        raise ValueError(
            f"strategy must be a tf.distribute.Strategy, got {strategy!r}. Make one by "
            "tfloss.make_strategy('mirrored'), and create model and optimizer in its scope."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the first worker, which writes files, or the only one.

    Args:
      strategy: The strategy of a run.
    """
    return worker_position(strategy)[0] == 0


def worker_position(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns the index of this worker and the number of workers; (0, 1) for a single process.

    Args:
      strategy: The strategy of a run. A task "chief" comes before the tasks "worker".
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver: Any = strategy.cluster_resolver
    cluster: dict[str, Any] = resolver.cluster_spec().as_dict() if resolver is not None else {}
    tasks = [(job, i) for job in ("chief", "worker") for i in range(len(cluster.get(job, ())))]
    mine = resolver and (resolver.task_type, resolver.task_id)
    return (tasks.index(mine), len(tasks)) if mine in tasks else (0, 1)


def control_of(
    strategy: tf.distribute.Strategy,
) -> tuple[ControlChannel, LostWorkers] | None:
    """Returns the control channel of a strategy of several workers.

    Args:
      strategy: The strategy of a run.

    Returns:
      The channel, and what ends this worker if another one is gone. None for a single worker, and
      for a strategy that `make_strategy` has not made.
    """
    return _CONTROL.get(strategy)


def _same_variable(channel: ControlChannel, variable: str) -> None:
    """Raises unless all workers create the same variable: each waits here for the others."""
    found = channel.gather("the creation of a variable", variable)
    if len(set(found)) > 1:
        each = "; ".join(f"{channel.name(rank)}: {one}" for rank, one in enumerate(found))
        error = channel.error(
            f"The workers create different variables: {each}. All workers must build the same "
            "model and optimizer, in the same order."
        )
        logger.error(str(error))  # Keras may swallow it while it builds a layer
        raise error


def _choose(replicas: int | None, cluster: Cluster | None) -> str:
    if cluster and len(cluster.addresses) > 1:
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
                f"TensorFlow has already started, with {configured} logical CPU "
                f"device{'s' * (configured > 1)}, so there can't be {replicas} replicas. Make the "
                "strategy first, before any tensor, variable, model or data set."
            ) from None
    # Collectives would serve only one strategy in a process.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _multi_worker(cluster: Cluster | None, connect_timeout: float | None) -> tf.distribute.Strategy:
    if cluster is None:
        raise ClusterError(f"Strategy 'multi_worker' found no workers. {no_cluster_advice()}")
    if cluster.source == "SLURM_STEP_NODELIST" and len(cluster.addresses) == 1:
        raise ClusterError(
            "Strategy 'multi_worker' found only one worker: SLURM_STEP_NUM_TASKS is 1. Start more "
            "(srun --ntasks=2), or use 'mirrored' for the GPUs of one host."
        )
    if connect_timeout is None:
        connect_timeout = _connect_timeout()
    if _tensorflow_has_started():  # checked before the others wait for this worker
        raise ValueError(
            "TensorFlow has already started, so it can't connect to other workers. Make the "
            "strategy first, before any tensor, variable, model or data set."
        )
    os.environ["TF_CONFIG"] = cluster.tf_config()
    worker_timeout()  # an invalid value is reported before the wait
    connections = wait_for_workers(cluster.addresses, cluster.rank, connect_timeout)
    try:
        with ended_with_any(connections, cluster.addresses):
            strategy = _connect_tensorflow(max(connect_timeout, _MIN_START_SECONDS))
    except Exception as error:
        send(connections, {"tell": "error", "text": error_text(error)})
        raise
    if connections:
        channel = ControlChannel(connections, cluster.addresses, cluster.rank)
        lost = LostWorkers(channel, _upstream.abort_collectives)
        lost.report_uncaught()
        _CONTROL[strategy] = channel, lost
        _upstream.broadcast_all_dtypes(strategy)
        _upstream.before_variables(strategy, lambda variable: _same_variable(channel, variable))
    # All workers read the same data set, so a shuffle without a seed must give the same order.
    keras.utils.set_random_seed(zlib.crc32(repr(cluster.addresses).encode()))
    return strategy


def _connect_tensorflow(timeout: float) -> tf.distribute.Strategy:
    """Makes the strategy, or ends the program with a traceback that shows this function.

    TensorFlow would wait forever for a worker that dies after the rendezvous. It holds Python's
    lock meanwhile, so no exception, thread or signal handler could end the wait.
    """
    faulthandler.dump_traceback_later(timeout, exit=True, file=2)
    try:
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=worker_timeout())
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    finally:
        faulthandler.cancel_dump_traceback_later()
        # TensorFlow installs its own handler, which only sets a flag. Python doesn't know it.
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tensorflow_has_started() -> bool:
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    try:
        tf.config.threading.set_inter_op_parallelism_threads(threads + 1)
    except RuntimeError:  # the number can only be set before the start
        return True
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return False


def _connect_timeout() -> float:
    text = os.environ.get("TFLOSS_CONNECT_TIMEOUT") or str(_DEFAULT_CONNECT_TIMEOUT)
    try:
        if (seconds := float(text)) >= 0 and math.isfinite(seconds):
            return seconds
    except ValueError:
        pass
    raise ClusterError(
        f"The variable TFLOSS_CONNECT_TIMEOUT must be a number of seconds, got {text!r}."
    )


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
