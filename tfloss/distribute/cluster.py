"""Who the workers are, from the environment. Host code, without TensorFlow.

The first of these that is set counts:

- `TF_CONFIG`: TensorFlow's own form, set by hand, by `tfloss launch` or by Kubeflow's TFJob:
  `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`.
- `TFLOSS_WORKERS`, `a:2222,b:2222`, the same for all, and `JOB_COMPLETION_INDEX`, which is
  this worker's place in it: Kubernetes sets the latter in the pods of an indexed Job.
- `SLURM_STEP_NODELIST`, `SLURM_STEP_TASKS_PER_NODE`, `SLURM_STEP_NUM_TASKS` and `SLURM_PROCID`,
  which `srun` sets in each of its tasks. The ports follow from the numbers of job and step.

A cluster that is named halfway, or wrongly, is refused: a worker that misreads it would train
alone, or wait for what never comes.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from tfloss.errors import ClusterError

# Below the ports that Linux gives to outgoing connections (32768 and up).
_SLURM_PORTS = (15000, 31000)
_LISTED = re.compile(r"(?P<prefix>[^\[\],\s]*)(?:\[(?P<ranges>[\d,-]+)\](?P<suffix>[^\[\],\s]*))?")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is.

    Attributes:
      jobs: the addresses, `host:port`, by the kind of task: "chief" (at most one) and "worker".
      task: the kind of this process.
      index: its place among the addresses of its kind.
      source: the variable that says so.
    """

    jobs: dict[str, tuple[str, ...]]
    task: str
    index: int
    source: str

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those of all workers, the chief's first: TensorFlow counts workers in this order."""
        return self.jobs.get("chief", ()) + self.jobs.get("worker", ())

    @property
    def rank(self) -> int:
        """The place of this process in `addresses`; the worker of rank 0 writes the files."""
        return self.index + (len(self.jobs.get("chief", ())) if self.task == "worker" else 0)

    def tf_config(self) -> str:
        """The same as a value of the variable TF_CONFIG, which TensorFlow reads."""
        cluster = {job: list(addresses) for job, addresses in self.jobs.items()}
        return json.dumps({"cluster": cluster, "task": {"type": self.task, "index": self.index}})


def find_cluster(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """The cluster that the environment names, or None if it names none.

    Args:
      environ: the environment variables; this process's own by default.

    Raises:
      ClusterError: a variable is wrong, or one that belongs to it is missing.
    """
    environ = os.environ if environ is None else environ
    for find in (_from_tf_config, _from_workers, _from_slurm):
        if cluster := find(environ):
            return cluster
    return None


def why_none(environ: Mapping[str, str] | None = None) -> str:
    """What to do where `find_cluster` finds none and one is asked for: one or two sentences."""
    environ = os.environ if environ is None else environ
    if "SLURM_JOB_ID" in environ:
        return (
            f"Slurm job {environ['SLURM_JOB_ID']} starts one worker for each task of srun, and "
            "this process isn't one (SLURM_STEP_NODELIST is not set). Start it with srun."
        )
    if "JOB_COMPLETION_INDEX" in environ:
        return (
            "JOB_COMPLETION_INDEX is set, but not TFLOSS_WORKERS. Set it to the addresses of all "
            "pods, in order: TFLOSS_WORKERS=train-0.train:2222,train-1.train:2222."
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

    def wrong(reason: str) -> ClusterError:
        return ClusterError(f"The variable TF_CONFIG is wrong: {reason}. It is: {text}")

    try:
        config = json.loads(text)
    except ValueError as error:
        raise wrong(f"it is not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("cluster", {}), dict):
        raise wrong('it must be {"cluster": {"worker": [...]}, "task": {...}}')
    if not config.get("cluster"):
        if config.get("task"):
            raise wrong('it has a "task" but no "cluster"')
        return None
    jobs = {}
    for job, addresses in config["cluster"].items():
        if job not in ("chief", "worker"):
            raise wrong(_why_not(job))
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise wrong(f'"{job}" must be a list of "host:port"')
        if addresses:
            jobs[job] = tuple(addresses)
    if len(jobs.get("chief", ())) > 1:
        raise wrong(f'there can be one "chief", and it names {len(jobs["chief"])}')
    task, index = _task(config.get("task"), wrong)
    if task not in jobs:
        raise wrong(
            f"this process is task {task!r}, which is not in the cluster ({', '.join(jobs)})"
            if task in ("chief", "worker")
            else f"this process is task {task!r}; {_why_not(task)}"
        )
    if not 0 <= index < len(jobs[task]):
        raise wrong(
            f"this process is {task} {index}, but the cluster has {_count(jobs[task], task)}, "
            "which count from 0"
        )
    _check_addresses([a for addresses in jobs.values() for a in addresses], wrong)
    return Cluster(jobs, task, index, "TF_CONFIG")


def _task(task: Any, wrong) -> tuple[str, int]:
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise wrong('it does not say which worker this is ("task": {"type": ..., "index": ...})')
    try:
        if isinstance(task["index"], bool | float):
            raise ValueError
        return str(task["type"]), int(task["index"])
    except (ValueError, TypeError):
        raise wrong(f"the task's index {task['index']!r} is not a whole number") from None


def _why_not(job: str) -> str:
    return {
        "ps": '"ps": tfloss trains without parameter servers',
        "evaluator": '"evaluator": tfloss evaluates on the workers, and needs none',
        "master": '"master": TensorFlow 2 calls it "chief"',
    }.get(job, f'"{job}": tfloss knows "chief" and "worker"')


def _from_workers(environ: Mapping[str, str]) -> Cluster | None:
    text = environ.get("TFLOSS_WORKERS")
    if not text or not text.strip():
        return None

    def wrong(reason: str) -> ClusterError:
        return ClusterError(f"The variable TFLOSS_WORKERS is wrong: {reason}. It is: {text}")

    addresses = [address.strip() for address in text.split(",")]
    _check_addresses(addresses, wrong)
    index = environ.get("JOB_COMPLETION_INDEX")
    if index is None:
        raise ClusterError(
            "TFLOSS_WORKERS is set, but not JOB_COMPLETION_INDEX, which says which of "
            f"{_count(addresses)} this is. Kubernetes sets it in the pods of a Job with "
            "completionMode: Indexed."
        )
    if not index.isdecimal() or int(index) >= len(addresses):
        raise ClusterError(
            f"The variable JOB_COMPLETION_INDEX is {index!r}, but TFLOSS_WORKERS names "
            f"{_count(addresses)}, which count from 0: {text}"
        )
    return Cluster({"worker": tuple(addresses)}, "worker", int(index), "TFLOSS_WORKERS")


def _from_slurm(environ: Mapping[str, str]) -> Cluster | None:
    """The tasks of a Slurm step, as workers in the order of their ranks.

    TensorFlow's SlurmClusterResolver sorts the hosts by name, so that n10 comes before n2 while
    Slurm counts its tasks the other way round, and it can't work without a GPU.
    """
    if "SLURM_STEP_NODELIST" not in environ:
        return None

    def need(name: str) -> str:
        if name not in environ:
            raise ClusterError(
                f"SLURM_STEP_NODELIST is set, but not {name}. Both are set by srun: start the "
                "workers with it and pass its environment on."
            )
        return environ[name]

    def number(name: str) -> int:
        value = need(name)
        if not value.isdecimal():
            raise ClusterError(f"The variable {name} is {value!r}, which is not a number.")
        return int(value)

    hosts = expand_hosts(environ["SLURM_STEP_NODELIST"])
    counts = _expand_counts(need("SLURM_STEP_TASKS_PER_NODE"))
    if len(hosts) != len(counts):
        raise ClusterError(
            f"SLURM_STEP_NODELIST names {len(hosts)} hosts "
            f"({environ['SLURM_STEP_NODELIST']}), but SLURM_STEP_TASKS_PER_NODE has the tasks "
            f"of {len(counts)} ({environ['SLURM_STEP_TASKS_PER_NODE']})."
        )
    tasks, rank = number("SLURM_STEP_NUM_TASKS"), number("SLURM_PROCID")
    if sum(counts) != tasks:
        raise ClusterError(
            f"SLURM_STEP_NUM_TASKS is {tasks}, but SLURM_STEP_TASKS_PER_NODE has "
            f"{sum(counts)} ({environ['SLURM_STEP_TASKS_PER_NODE']})."
        )
    if rank >= tasks:
        raise ClusterError(f"SLURM_PROCID is {rank}, but the step has {tasks} tasks, from 0.")
    places = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    node, local = places[rank]
    for name, expected in (("SLURMD_NODENAME", hosts[node]), ("SLURM_LOCALID", str(local))):
        if environ.get(name, expected) != expected:
            raise ClusterError(
                f"{name} is {environ[name]}, where task {rank} of {environ['SLURM_STEP_NODELIST']} "
                f"with {environ['SLURM_STEP_TASKS_PER_NODE']} tasks should have {expected}: the "
                "tasks are not laid out host by host. Start them with srun --distribution=block."
            )
    first = _slurm_port(environ, number, max(counts))
    addresses = tuple(f"{hosts[node]}:{first + local}" for node, local in places)
    return Cluster({"worker": addresses}, "worker", rank, "SLURM_STEP_NODELIST")


def _slurm_port(environ: Mapping[str, str], number, needed: int) -> int:
    """The port of the first task of each host: another one for jobs that may share a host."""
    job, step = number("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID", "0")
    low, high = _SLURM_PORTS
    step = int(step) if step.isdecimal() else 0
    return low + (64 * job + 16 * step) % (high - low - needed)


def expand_hosts(text: str) -> list[str]:
    """The hosts of a Slurm list such as `gpu[01-03,7],login`, in its order.

    Raises:
      ClusterError: it can't be read.
    """
    hosts = []
    for part in re.split(r",(?![^\[]*\])", text):
        match = _LISTED.fullmatch(part)
        if not part or not match:
            raise ClusterError(f"The variable SLURM_STEP_NODELIST can't be read: {text}")
        if match["ranges"] is None:
            hosts.append(part)
            continue
        for piece in match["ranges"].split(","):
            ends = piece.split("-")
            if len(ends) > 2 or not all(ends):
                raise ClusterError(f"The variable SLURM_STEP_NODELIST can't be read: {text}")
            for value in range(int(ends[0]), int(ends[-1]) + 1):
                digits = str(value).zfill(len(ends[0]))
                hosts.append(f"{match['prefix']}{digits}{match['suffix'] or ''}")
    return hosts


def _expand_counts(text: str) -> list[int]:
    """The tasks of each host of a Slurm list such as `2(x3),1`."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ClusterError(f"The variable SLURM_STEP_TASKS_PER_NODE can't be read: {text}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _check_addresses(addresses: list[str], wrong) -> None:
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal():
            raise wrong(f"address {address!r} has no port (host:port)")
        if not host or "/" in host or (":" in host and not host.startswith("[")):
            raise wrong(f"address {address!r} is not host:port (an IPv6 one is [address]:port)")
        if not 0 < int(port) < 65536:
            raise wrong(f"the port of address {address!r} is not between 1 and 65535")
    for address in addresses:
        if addresses.count(address) > 1:
            raise wrong(f"address {address!r} is there {addresses.count(address)} times")


def _count(addresses, job: str = "worker") -> str:
    return f"{len(addresses)} {job}{'s' * (len(addresses) != 1)}"
