"""`tfloss launch`: a cluster of workers on this machine, started and ended together. Host code.

    tfloss launch --workers 2 -- python train.py --config=... --workdir=...

Each worker is a process with a free port of 127.0.0.1 and a TF_CONFIG of its own, so that
`make_strategy("auto")` finds the others. What it prints comes out line by line behind its number.
The GPUs of this machine are shared out evenly.

TensorFlow can't let a worker that died back into a running cluster, so one that fails ends all,
and a restart is one of all. Nothing here imports TensorFlow.
"""

import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from tfloss.distribute.cluster import Cluster

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PORTS = range(15000, 32000)  # those above are given to outgoing connections, at any time
_LAST_LINES = 2.0  # seconds for what a worker that has ended left in its pipe


def run(command: Sequence[str], workers: int, max_restarts: int = 0, grace: float = 30.0) -> int:
    """Runs the command as that many workers and returns the exit code. In the main thread.

    SIGINT, SIGTERM and SIGHUP are passed on to all workers; those that have not ended `grace`
    seconds later, or at a second such signal, are killed. When a worker fails, the others get
    SIGTERM and the same time.

    Args:
      command: the program and its arguments.
      workers: how many processes.
      max_restarts: how often all workers are started again after one has failed. Not after a
        signal to this process.
      grace: seconds between SIGTERM and SIGKILL.

    Returns:
      0 if all workers ended with 0, else the code of the first that failed: 128 + n if signal n
      killed it, 127 if there is no such program.
    """
    events: SimpleQueue[Any] = SimpleQueue()
    before = {}
    for signum in _FORWARDED:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            # A SimpleQueue, and only it, may be put to in a handler.
            before[signum] = signal.signal(signum, lambda number, _: events.put(number))
    try:
        restarts = 0
        while True:
            group = _Group(command, workers, events, grace)
            code = group.run()
            if not code or group.told or restarts >= max_restarts:
                if code and not group.told:
                    _say(f"{group.failure}; all have ended")
                return code
            restarts += 1
            _say(
                f"{group.failure}; starting all {workers} again "
                f"(restart {restarts} of {max_restarts})"
            )
    except OSError as error:  # of Popen
        _say(f"can't start {command[0]!r}: {error.strerror}")
        return 127
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@dataclasses.dataclass(frozen=True)
class _Ended:
    group: "_Group"
    worker: int
    code: int


class _Group:
    """One start of all workers, on new ports, until the last has ended."""

    def __init__(self, command: Sequence[str], workers: int, events: SimpleQueue, grace: float):
        self.told = False
        self.failure = ""
        self._events, self._grace = events, grace
        self._code = 0
        self._deadline: float | None = None
        self._processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        addresses = tuple(f"127.0.0.1:{port}" for port in _free_ports(workers))
        gpus = _shares_of_gpus(workers)
        try:
            for index in range(workers):
                cluster = Cluster({"worker": addresses}, "worker", index, "tfloss launch")
                self._start(command, index, {"TF_CONFIG": cluster.tf_config()} | gpus[index])
        except BaseException:
            self._send(signal.SIGKILL)
            raise

    def run(self) -> int:
        """Waits until all have ended; the code of the first that failed, or 0."""
        running = set(range(len(self._processes)))
        while running:
            try:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                event = self._events.get(timeout=None if left is None else max(left, 0.0))
            except Empty:
                self._send(signal.SIGKILL)
                self._deadline = None
                continue
            if isinstance(event, _Ended):
                if event.group is self:
                    running.discard(event.worker)
                    if event.code and not self._code:
                        self._fail(event)
            elif self.told:
                self._send(signal.SIGKILL)
            else:
                self.told = True
                self._send(event)
                self._deadline = time.monotonic() + self._grace
        self._finish()
        return self._code

    def _start(self, command: Sequence[str], index: int, variables: dict[str, str]) -> None:
        process = subprocess.Popen(
            list(command),
            env={"PYTHONUNBUFFERED": "1"} | os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # else a terminal's Ctrl-C comes twice
        )
        self._processes.append(process)
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            reader = threading.Thread(target=_copy, args=(index, pipe, out), daemon=True)
            reader.start()
            self._readers.append(reader)

        def wait() -> None:
            code = process.wait()
            self._events.put(_Ended(self, index, code if code >= 0 else 128 - code))

        threading.Thread(target=wait, daemon=True).start()

    def _fail(self, event: _Ended) -> None:
        self._code = event.code
        how = f"ended with exit code {event.code}"
        if event.code > 128:
            how = f"was killed by {_signal_name(event.code - 128)}"
        self.failure = f"worker {event.worker} {how}"
        if self._deadline is None:
            self._send(signal.SIGTERM)
            self._deadline = time.monotonic() + self._grace

    def _send(self, signum: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signum)

    def _finish(self) -> None:
        """Kills what the workers started and left behind, and waits for their last lines."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        until = time.monotonic() + _LAST_LINES
        for reader in self._readers:
            reader.join(max(until - time.monotonic(), 0.0))


_printing = threading.Lock()


def _copy(index: int, pipe: IO[bytes], out: Any) -> None:
    """Prints a worker's lines, until it closes them or nobody reads these any more."""
    prefix = f"[{index}] ".encode()
    with pipe:
        for line in pipe:
            try:
                with _printing:
                    out.buffer.write(prefix + line.removesuffix(b"\n") + b"\n")
                    out.flush()
            except OSError:
                return  # and the worker learns it as it would have without a launcher


def _say(text: str) -> None:
    with _printing:
        sys.stderr.write(f"tfloss launch: {text}\n")
        sys.stderr.flush()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _free_ports(count: int) -> list[int]:
    found = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
    raise OSError(None, f"this machine has no {count} free ports between 15000 and 32000")


def _shares_of_gpus(workers: int) -> list[dict[str, str]]:
    """The variables that give each worker GPUs of its own: two can't work on the same one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # A container has the files of its own GPUs only.
        gpus = [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    else:
        gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if not gpus:
        return [{}] * workers
    share = len(gpus) // workers
    if not share:
        _say(f"{workers} workers can't share {len(gpus)} GPUs; they run on the CPU")
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share]) or "-1"}
        for i in range(workers)
    ]
