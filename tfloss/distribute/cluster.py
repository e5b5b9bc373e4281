"""Reads the workers of a run from the environment variables. Host code, without TensorFlow.

The first of these variables that is set is used:

- `TF_CONFIG`: TensorFlow's own form, set by hand, by `tfloss launch` or by Kubeflow's TFJob:
  `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`.
- `TFLOSS_WORKERS`, `a:2222,b:2222`, the same for all workers, with `JOB_COMPLETION_INDEX`, the
  index of this worker. Kubernetes sets the latter in the pods of an indexed Job.
- `SLURM_STEP_NODELIST` and others, which `srun` sets (`tfloss/distribute/slurm.py`).

An invalid or incomplete description is an error. A worker that misread it would train alone, or
would wait for workers that don't exist.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfloss.distribute.slurm import slurm_workers
from tfloss.errors import ClusterError

_MakeError = Callable[[str], ClusterError]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is.

    Attributes:
      jobs: The addresses, `host:port`, by type of task: "chief" (at most one) and "worker".
      task: The type of this process's task.
      index: The index of this process among the tasks of its type.
      source: The variable that describes the cluster.
    """

    jobs: dict[str, tuple[str, ...]]
    task: str
    index: int
    source: str

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of all workers, the chief's first, in TensorFlow's order."""
        return self.jobs.get("chief", ()) + self.jobs.get("worker", ())

    @property
    def rank(self) -> int:
        """The index of this process in `addresses`. The worker of rank 0 writes the files."""
        return self.index + (len(self.jobs.get("chief", ())) if self.task == "worker" else 0)

    def tf_config(self) -> str:
        """Returns the cluster as a value of the variable TF_CONFIG, which TensorFlow reads."""
        cluster = {job: list(addresses) for job, addresses in self.jobs.items()}
        return json.dumps({"cluster": cluster, "task": {"type": self.task, "index": self.index}})


def find_cluster(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """Reads the cluster from the environment variables.

    Args:
      environ: The environment variables. None: those of this process.

    Returns:
      The cluster; None if no variable describes one.

    Raises:
      ClusterError: A variable is invalid, or a variable that belongs to it is missing.
    """
    environ = os.environ if environ is None else environ
    for find in (_from_tf_config, _from_workers, _from_slurm):
        if cluster := find(environ):
            return cluster
    return None


def no_cluster_advice(environ: Mapping[str, str] | None = None) -> str:
    """Explains how to describe the cluster, for an error where `find_cluster` returns None.

    Args:
      environ: The environment variables. None: those of this process.

    Returns:
      One or two sentences.
    """
    environ = os.environ if environ is None else environ
    if "SLURM_JOB_ID" in environ:
        return (
            f"Slurm job {environ['SLURM_JOB_ID']} runs one worker for each task of srun, but this "
            "process is not a task (SLURM_STEP_NODELIST is not set). Start it with srun."
        )
    if "JOB_COMPLETION_INDEX" in environ:
        return (
            "JOB_COMPLETION_INDEX is set, but TFLOSS_WORKERS is not. Set it to the addresses of "
            "all pods, in order: TFLOSS_WORKERS=train-0.train:2222,train-1.train:2222."
        )
    return (
        "Start the workers with `tfloss launch --workers 2 -- python train.py ...` on this "
        'machine, or set the variable TF_CONFIG on each of them: {"cluster": {"worker": '
        '["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
    )


def _from_tf_config(environ: Mapping[str, str]) -> Cluster | None:
    text = environ.get("TF_CONFIG")
    if not text or not text.strip():
        return None

    def error(problem: str) -> ClusterError:
        return ClusterError(f"The variable TF_CONFIG is invalid: {problem}. Its value: {text}")

    try:
        config = json.loads(text)
    except ValueError as cause:
        raise error(f"it is not JSON ({cause})") from None
    if not isinstance(config, dict) or not isinstance(config.get("cluster", {}), dict):
        raise error('it must be {"cluster": {"worker": [...]}, "task": {...}}')
    if not config.get("cluster"):
        if config.get("task"):
            raise error('it has a "task" but no "cluster"')
        return None
    jobs = _jobs(config["cluster"], error)
    task, index = _task(config.get("task"), error)
    if task not in jobs:
        raise error(
            f"this process is task {task!r}, which is not in the cluster ({', '.join(jobs)})"
            if task in ("chief", "worker")
            else f"this process is task {task!r}; {_unknown_job(task)}"
        )
    if not 0 <= index < len(jobs[task]):
        raise error(
            f"this process is {task} {index}, but the cluster has {_count(jobs[task], task)}, "
            "numbered from 0"
        )
    return Cluster(jobs, task, index, "TF_CONFIG")


def _jobs(cluster: Mapping[str, Any], error: _MakeError) -> dict[str, tuple[str, ...]]:
    jobs: dict[str, tuple[str, ...]] = {}
    for job, addresses in cluster.items():
        if job not in ("chief", "worker"):
            raise error(_unknown_job(job))
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise error(f'"{job}" must be a list of "host:port"')
        if addresses:
            jobs[job] = tuple(map(str, addresses))
    if len(jobs.get("chief", ())) > 1:
        raise error(f'there can be only one "chief", but it has {len(jobs["chief"])}')
    _check_addresses([a for addresses in jobs.values() for a in addresses], error)
    return jobs


def _task(task: Any, error: _MakeError) -> tuple[str, int]:
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise error('it does not say which worker this is ("task": {"type": ..., "index": ...})')
    try:
        if isinstance(task["index"], bool | float):
            raise ValueError
        return str(task["type"]), int(task["index"])
    except (ValueError, TypeError):
        raise error(f"the index {task['index']!r} of the task is not an integer") from None


def _unknown_job(job: str) -> str:
    return {
        "ps": '"ps": tfloss trains without parameter servers',
        "evaluator": '"evaluator": tfloss evaluates on the workers, so it needs no evaluator',
        "master": '"master": TensorFlow 2 calls it "chief"',
    }.get(job, f'"{job}": the types of tasks are "chief" and "worker"')


def _from_workers(environ: Mapping[str, str]) -> Cluster | None:
    text = environ.get("TFLOSS_WORKERS")
    if not text or not text.strip():
        return None

    def error(problem: str) -> ClusterError:
        return ClusterError(f"The variable TFLOSS_WORKERS is invalid: {problem}. Its value: {text}")

    addresses = [address.strip() for address in text.split(",")]
    _check_addresses(addresses, error)
    index = environ.get("JOB_COMPLETION_INDEX")
    if index is None:
        raise ClusterError(
            "TFLOSS_WORKERS is set, but JOB_COMPLETION_INDEX is not. It says which of the "
            f"{_count(addresses)} this process is. Kubernetes sets it in the pods of a Job with "
            "completionMode: Indexed."
        )
    if not index.isdecimal() or int(index) >= len(addresses):
        raise ClusterError(
            f"The variable JOB_COMPLETION_INDEX is {index!r}, but TFLOSS_WORKERS has "
            f"{_count(addresses)}, numbered from 0: {text}"
        )
    return Cluster({"worker": tuple(addresses)}, "worker", int(index), "TFLOSS_WORKERS")


def _from_slurm(environ: Mapping[str, str]) -> Cluster | None:
    workers = slurm_workers(environ)
    if workers is None:
        return None
    addresses, rank = workers
    return Cluster({"worker": addresses}, "worker", rank, "SLURM_STEP_NODELIST")


def _check_addresses(addresses: Sequence[str], error: _MakeError) -> None:
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal():
            raise error(f"address {address!r} has no port (host:port)")
        if not host or "/" in host or (":" in host and not host.startswith("[")):
            raise error(f"address {address!r} is not host:port (an IPv6 one is [address]:port)")
        if not 0 < int(port) < 65536:
            raise error(f"the port of address {address!r} is not between 1 and 65535")
    for address in addresses:
        if addresses.count(address) > 1:
            raise error(f"address {address!r} is listed {addresses.count(address)} times")


def _count(addresses: Sequence[str], job: str = "worker") -> str:
    return f"{len(addresses)} {job}{'s' * (len(addresses) != 1)}"
