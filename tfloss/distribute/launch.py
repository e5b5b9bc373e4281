"""Runs a cluster of workers on this machine: the command `tfloss launch`. Host code.

    tfloss launch --workers 2 -- python train.py --config=... --workdir=...

Each worker is a process with its own port of 127.0.0.1 and its own TF_CONFIG, so that
`make_strategy("auto")` finds the others. They share a random TFLOSS_CLUSTER_SECRET, so that no
other process can take part. Its output is printed line by line, with its number in
front. Each worker gets the same number of GPUs.

TensorFlow can't add a restarted worker to a running cluster. So if one worker fails, all are ended,
and a restart starts all of them. Without TensorFlow.
"""

import dataclasses
import logging
import os
import secrets
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

from tfloss.common.logger import logger
from tfloss.distribute.cluster import Cluster
from tfloss.distribute.handshake import VARIABLE

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PORTS = range(15000, 32000)  # Linux gives the ports above to outgoing connections
_LAST_LINES_SECONDS = 2.0  # to read the last lines of a worker that has ended


def run(command: Sequence[str], workers: int, max_restarts: int = 0, grace: float = 30.0) -> int:
    """Runs a command as several workers. Call it in the main thread.

    SIGINT, SIGTERM and SIGHUP are forwarded to all workers. Workers that are still running `grace`
    seconds later, or at a second signal, are killed. If a worker fails, the others get SIGTERM, and
    are killed after the same time.

    Args:
      command: The program and its arguments.
      workers: The number of workers.
      max_restarts: The maximum number of restarts of all workers after one has failed. There is no
        restart after a signal to this process.
      grace: Seconds between SIGTERM and SIGKILL.

    Returns:
      The exit code: 0 if all workers ended with 0, else the code of the first one that failed,
      which is 128 + n if signal n killed it; 127 if the program can't be started.
    """
    events: SimpleQueue[Any] = SimpleQueue()
    before = {}
    for signum in _FORWARDED:
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
            # SimpleQueue is the only queue whose `put` is safe in a signal handler.
            before[signum] = signal.signal(signum, lambda number, _: events.put(number))
    try:
        restarts = 0
        while True:
            group = _Group(command, workers, events, grace)
            code = group.run()
            if not code or group.signalled or restarts >= max_restarts:
                if code and not group.signalled:
                    _log(logging.ERROR, f"{group.failure}; all workers have ended")
                return code
            restarts += 1
            _log(
                logging.WARNING,
                f"{group.failure}; restarting all {workers} workers "
                f"(restart {restarts} of {max_restarts})",
            )
    except OSError as error:  # raised by Popen
        _log(logging.ERROR, f"can't start {command[0]!r}: {error.strerror}")
        return 127
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@dataclasses.dataclass(frozen=True)
class _Ended:
    """The event that a worker has ended."""

    group: "_Group"
    worker: int
    code: int


class _Group:
    """One start of all workers, on new ports, until the last one has ended.

    Args:
      command: The program and its arguments.
      workers: The number of workers.
      events: The queue for signals (their numbers) and for workers that have ended.
      grace: Seconds between SIGTERM and SIGKILL.

    Attributes:
      signalled: Whether this process has got a signal.
      failure: A description of the first failure, or "".
    """

    def __init__(
        self, command: Sequence[str], workers: int, events: SimpleQueue[Any], grace: float
    ):
        self.signalled = False
        self.failure = ""
        self._events, self._grace = events, grace
        self._code = 0
        self._deadline: float | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(workers))
        gpus = _gpu_variables(workers)
        secret = {VARIABLE: os.environ.get(VARIABLE) or secrets.token_hex()}
        try:
            for index in range(workers):
                cluster = Cluster({"worker": addresses}, "worker", index, "tfloss launch")
                self._start(
                    command, index, {"TF_CONFIG": cluster.tf_config()} | secret | gpus[index]
                )
        except BaseException:
            self._send(signal.SIGKILL)
            raise

    def run(self) -> int:
        """Waits until all workers have ended.

        Returns:
          The code of the first worker that failed, or 0.
        """
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
            elif self.signalled:
                self._send(signal.SIGKILL)
            else:
                self.signalled = True
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
            start_new_session=True,  # else a Ctrl-C in a terminal reaches the worker twice
        )
        self._processes.append(process)
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            reader = threading.Thread(target=_copy_lines, args=(index, pipe, out), daemon=True)
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
        """Kills processes that the workers left behind, and waits for their last lines."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        deadline = time.monotonic() + _LAST_LINES_SECONDS
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0.0))


_printing = threading.Lock()


def _copy_lines(index: int, pipe: IO[bytes], out: Any) -> None:
    """Prints a worker's lines until the worker, or the reader of this output, closes its end."""
    prefix = f"[{index}] ".encode()
    with pipe:
        for line in pipe:
            try:
                with _printing:
                    out.buffer.write(prefix + line.removesuffix(b"\n") + b"\n")
                    out.flush()
            except OSError:
                return  # closes the pipe: the worker gets the same error as without a launcher


def _log(level: int, message: str) -> None:
    with _printing:
        logger.log(level, message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def free_ports(count: int) -> list[int]:
    """Finds ports of this machine that no process uses now, in random order.

    Args:
      count: The number of ports.

    Returns:
      The ports, below those that Linux gives to outgoing connections.

    Raises:
      OSError: There are not enough free ports.
    """
    ports: list[int] = []
    # Not from `random`, which two processes may have seeded alike: they would take the same ports.
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(ports) == count:
            return ports
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            ports.append(port)
    raise OSError(None, f"this machine has no {count} free ports between 15000 and 32000")


def _gpu_variables(workers: int) -> list[dict[str, str]]:
    """Returns the environment variables that give each worker its own GPUs.

    Two workers can't use the same GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # A container has device files only for its own GPUs.
        gpus = [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    else:
        gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if not gpus:
        return [{}] * workers
    each = len(gpus) // workers
    if not each:
        _log(
            logging.WARNING,
            f"{workers} workers can't share {len(gpus)} GPUs; they run on the CPU",
        )
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each]) or "-1"}
        for i in range(workers)
    ]
