"""Reads the workers of a Slurm step from the environment of its tasks. Host code, no TensorFlow.

`srun` sets SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE, SLURM_STEP_NUM_TASKS and SLURM_PROCID in
each task. The workers are the tasks, in the order of their ranks. The ports follow from the numbers
of the job and the step.

TensorFlow's SlurmClusterResolver sorts hosts by name, so that n10 comes before n2, where Slurm has
the opposite order. It also needs a GPU.
"""

import re
from collections.abc import Mapping, Sequence

from tfloss.errors import ClusterError

# Below the ports that Linux gives to outgoing connections (32768 and up).
_PORTS = (15000, 31000)
_HOSTS = re.compile(r"(?P<prefix>[^\[\],\s]*)(?:\[(?P<ranges>[\d,-]+)\](?P<suffix>[^\[\],\s]*))?")


def slurm_workers(environ: Mapping[str, str]) -> tuple[tuple[str, ...], int] | None:
    """Reads the addresses of all tasks of a Slurm step, and the rank of this task.

    Args:
      environ: The environment variables.

    Returns:
      The addresses, `host:port`, and the index of this process's address. None if this process was
      not started by srun.

    Raises:
      ClusterError: A variable is missing or invalid, or two of them contradict each other.
    """
    if "SLURM_STEP_NODELIST" not in environ:
        return None
    hosts = expand_hosts(environ["SLURM_STEP_NODELIST"])
    counts = _expand_counts(_required(environ, "SLURM_STEP_TASKS_PER_NODE"))
    rank = _number(environ, "SLURM_PROCID")
    _check_counts(environ, hosts, counts, rank)
    tasks = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    node, local = tasks[rank]
    for name, expected in (("SLURMD_NODENAME", hosts[node]), ("SLURM_LOCALID", str(local))):
        if environ.get(name, expected) != expected:
            raise ClusterError(
                f"{name} is {environ[name]}, but task {rank} of {environ['SLURM_STEP_NODELIST']} "
                f"with {environ['SLURM_STEP_TASKS_PER_NODE']} tasks should have {expected}: the "
                "tasks are not placed host by host. Start them with srun --distribution=block."
            )
    first_port = _first_port(environ, max(counts))
    return tuple(f"{hosts[node]}:{first_port + local}" for node, local in tasks), rank


def expand_hosts(text: str) -> list[str]:
    """Expands a Slurm list of hosts such as `gpu[01-03,7],login`, in its order.

    Args:
      text: The list.

    Returns:
      The names of the hosts.

    Raises:
      ClusterError: The list can't be parsed.
    """
    hosts: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        match = _HOSTS.fullmatch(part)
        if not part or not match:
            raise ClusterError(f"The variable SLURM_STEP_NODELIST can't be parsed: {text}")
        if match["ranges"] is None:
            hosts.append(part)
            continue
        for piece in match["ranges"].split(","):
            ends = piece.split("-")
            if len(ends) > 2 or not all(ends):
                raise ClusterError(f"The variable SLURM_STEP_NODELIST can't be parsed: {text}")
            for value in range(int(ends[0]), int(ends[-1]) + 1):
                digits = str(value).zfill(len(ends[0]))
                hosts.append(f"{match['prefix']}{digits}{match['suffix'] or ''}")
    return hosts


def _expand_counts(text: str) -> list[int]:
    """Expands the number of tasks of each host, a Slurm list such as `2(x3),1`."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ClusterError(f"The variable SLURM_STEP_TASKS_PER_NODE can't be parsed: {text}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _check_counts(
    environ: Mapping[str, str], hosts: Sequence[str], counts: Sequence[int], rank: int
) -> None:
    if len(hosts) != len(counts):
        raise ClusterError(
            f"SLURM_STEP_NODELIST has {len(hosts)} hosts ({environ['SLURM_STEP_NODELIST']}), but "
            f"SLURM_STEP_TASKS_PER_NODE has the tasks of {len(counts)} hosts "
            f"({environ['SLURM_STEP_TASKS_PER_NODE']})."
        )
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    if sum(counts) != tasks:
        raise ClusterError(
            f"SLURM_STEP_NUM_TASKS is {tasks}, but SLURM_STEP_TASKS_PER_NODE has {sum(counts)} "
            f"tasks ({environ['SLURM_STEP_TASKS_PER_NODE']})."
        )
    if rank >= tasks:
        raise ClusterError(
            f"SLURM_PROCID is {rank}, but the step has {tasks} tasks, numbered from 0."
        )


def _first_port(environ: Mapping[str, str], needed: int) -> int:
    """Returns the port of the first task of each host. It differs for jobs that share a host."""
    job, step_text = _number(environ, "SLURM_JOB_ID"), environ.get("SLURM_STEP_ID", "0")
    low, high = _PORTS
    step = int(step_text) if step_text.isdecimal() else 0
    return low + (64 * job + 16 * step) % (high - low - needed)


def _required(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise ClusterError(
            f"SLURM_STEP_NODELIST is set, but {name} is not. srun sets both. Start the workers "
            "with srun, and pass its environment on to them."
        )
    return environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    value = _required(environ, name)
    if not value.isdecimal():
        raise ClusterError(f"The variable {name} is {value!r}, which is not a number.")
    return int(value)
