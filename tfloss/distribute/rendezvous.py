"""Waits until all workers of a cluster have connected, with a timeout. Host code, no TensorFlow.

TensorFlow waits forever for a worker that does not start. It prints nothing, and SIGTERM can't end
it. So the workers connect here before TensorFlow starts, each on its own address:

1. Each worker listens on its port, and connects to all others until they answer. A request and its
   answer are one line each, with the rank and the list of workers. They reveal a worker of another
   run, a worker with another list, and two workers with the same rank.
2. A worker that all others have answered sends `ready` on the same connections. A worker that all
   others have answered, and that has received `ready` from all, closes its port and returns. Then
   every worker has reached every other, and none will connect again.

A worker that dies and is restarted in the meantime connects again. There is no leader, so each
worker can name those that *it* can't reach. The connections are the same that TensorFlow's
collectives need, between each pair of workers. TensorFlow reuses the port (SO_REUSEADDR).
"""

import contextlib
import json
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tfloss.common.logger import logger
from tfloss.errors import MissingWorkersError

_RETRY_SECONDS = 0.2  # between two attempts to connect
_ANSWER_SECONDS = 10.0  # for a connected worker to send its line
_LOG_SECONDS = 30.0  # between two messages about missing workers
_MAX_LINE_BYTES = 1_000_000


def wait_for_workers(addresses: Sequence[str], rank: int, timeout: float) -> None:
    """Waits until all workers have called this function with the same addresses.

    A message every 30 seconds names the workers that are missing.

    Args:
      addresses: The addresses of all workers, `host:port`, in the same order on all workers.
      rank: The index of this worker's address.
      timeout: Seconds to wait.

    Raises:
      MissingWorkersError: Some workers did not connect in time. It has their addresses.
      SystemExit: SIGTERM arrived during the wait, in the main thread. The code is 143.
    """
    rendezvous = _Rendezvous(list(addresses), rank)
    start = time.monotonic()
    logged = start
    with _exit_on_sigterm(rendezvous), rendezvous:
        while not rendezvous.wait(0.1):
            now = time.monotonic()
            if now - start >= timeout:
                raise MissingWorkersError(
                    f"After {timeout:g} s worker {rank} ({addresses[rank]}) still waits for "
                    f"{rendezvous.missing()}. Have these workers been started, with the same list "
                    "of workers? Can the hosts connect to each other's ports? To wait longer, set "
                    "TFLOSS_CONNECT_TIMEOUT=SECONDS."
                )
            if now - logged >= _LOG_SECONDS:
                logged = now
                logger.info(f"waiting for {rendezvous.missing()}")


@contextlib.contextmanager
def _exit_on_sigterm(rendezvous: "_Rendezvous") -> Generator[None]:
    def end(signum: int, frame: Any) -> None:
        logger.info(f"ended by SIGTERM while waiting for {rendezvous.missing()}")
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # None is a handler of native code, which can't be restored. The default ends the program.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _Rendezvous:
    """The connections of one worker, inside a `with`.

    Each connection has its own thread, so that a slow name server delays no other worker. A worker
    that is restarted has the same rank, but another incarnation.

    Args:
      addresses: The addresses of all workers.
      rank: The index of this worker's address.
    """

    def __init__(self, addresses: list[str], rank: int):
        self._addresses, self._rank = addresses, rank
        self._others = [other for other in range(len(addresses)) if other != rank]
        line = {
            "tfloss": "worker",
            "rank": rank,
            "workers": addresses,
            "incarnation": secrets.token_hex(),
        }
        self._line = json.dumps(line).encode() + b"\n"
        self._changed = threading.Condition()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._problems = dict.fromkeys(self._others, "not tried yet")
        self._own_problem = ""
        # Each of these maps the rank of another worker to its incarnation.
        self._callers: dict[int, str] = {}  # workers that have connected to this one
        self._answered: dict[int, str] = {}  # workers that have answered this one
        self._ready_sent: dict[int, str] = {}  # workers that this one has sent `ready`
        self._ready_received: dict[int, str] = {}  # workers that have sent this one `ready`

    def __enter__(self) -> "_Rendezvous":
        self._listening = self._start(self._listen)
        for other in self._others:
            self._start(self._connect, other)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        self._listening.join()  # then the port is free

    def wait(self, seconds: float) -> bool:
        """Waits until every worker has reached every other.

        Args:
          seconds: The longest time to wait.

        Returns:
          Whether every worker has reached every other.
        """
        count = len(self._others)
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    self._complete() and len(self._ready_sent) == len(self._ready_received) == count
                ),
                seconds,
            )

    def missing(self) -> str:
        """Describes the missing workers, with the reasons, for a message."""
        with self._changed:
            found = [self._own_problem] if self._own_problem else []
            for other in self._others:
                if other not in self._answered:
                    problem = self._problems[other]
                elif other not in self._ready_received:
                    problem = "it is running, but some workers have not answered it; see its output"
                else:
                    continue
                found.append(f"worker {other} ({self._addresses[other]}: {problem})")
            return ", ".join(found)

    def _complete(self) -> bool:
        return len(self._answered) == len(self._others)

    def _start(self, function: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        return thread

    @contextlib.contextmanager
    def _registered(self, sock: socket.socket) -> Generator[None]:
        """Closes the socket at the end of the block. `__exit__` ends the block early."""
        with sock:
            with self._changed:
                if self._closed:
                    raise ConnectionAbortedError("the rendezvous is closed")
                self._sockets.add(sock)
            try:
                yield
            finally:
                with self._changed:
                    self._sockets.discard(sock)

    def _connect(self, other: int) -> None:
        """Connects to another worker until it answers, and again if it ends too early."""
        while not self._closed:
            try:
                problem = self._try_to_connect(other)
            except (OSError, UnicodeError) as error:  # UnicodeError: not a valid name of a host
                problem = _describe(error)
            with self._changed:
                # A worker that got `ready` may have returned, unless it connects again, restarted.
                self._changed.wait_for(
                    lambda: (
                        self._closed
                        or other not in self._ready_sent
                        or self._callers.get(other, self._ready_sent[other])
                        != self._ready_sent[other]
                    )
                )
                self._ready_sent.pop(other, None)
                self._answered.pop(other, None)
                self._problems[other] = problem
                self._changed.wait_for(lambda: self._closed, _RETRY_SECONDS)

    def _try_to_connect(self, other: int) -> str:
        """Connects once, and stays connected as long as possible. Returns what went wrong."""
        host, _, port = self._addresses[other].rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS)
        with self._registered(sock), sock.makefile("rb") as lines:
            sock.sendall(self._line)
            found = _read(lines)
            if problem := self._mismatch(found, other):
                return problem
            with self._changed:
                self._answered[other] = found["incarnation"]
                self._changed.notify_all()
            self._start(self._send_ready, other, sock)
            # The other worker sends nothing more. It closes the connection when it returns.
            sock.settimeout(None)
            lines.readline()
        return "it answered, then closed the connection"

    def _send_ready(self, other: int, sock: socket.socket) -> None:
        """Sends `ready` to another worker once all have answered, unless it ends before."""
        with self._changed, contextlib.suppress(OSError):
            incarnation = self._answered.get(other)
            self._changed.wait_for(
                lambda: self._closed or self._complete() or self._answered.get(other) != incarnation
            )
            if incarnation and self._complete() and self._answered[other] == incarnation:
                sock.sendall(b"ready\n")
                self._ready_sent[other] = incarnation
                self._changed.notify_all()

    def _listen(self) -> None:
        port = int(self._addresses[self._rank].rpartition(":")[2])
        while not self._closed:
            try:
                listener = _listener(port)
            except OSError as error:
                self._own_problem = f"its own port {port} ({_describe(error)})"
                time.sleep(_RETRY_SECONDS)
                continue
            self._own_problem = ""
            with contextlib.suppress(OSError), self._registered(listener):
                listener.settimeout(_RETRY_SECONDS)
                while not self._closed:
                    with contextlib.suppress(TimeoutError):
                        self._start(self._answer, listener.accept()[0])

    def _answer(self, sock: socket.socket) -> None:
        """Answers a worker that has connected, and waits until it sends `ready`."""
        with contextlib.suppress(OSError), self._registered(sock), sock.makefile("rb") as lines:
            sock.settimeout(_ANSWER_SECONDS)
            found = _read(lines)
            if not found:
                return
            sock.sendall(self._line)  # to a worker of another run, too, so that it can report it
            other = found.get("rank")
            if other not in self._others or self._mismatch(found, other):
                return
            with self._changed:
                self._callers[other] = found["incarnation"]
                self._ready_received.pop(other, None)
                self._changed.notify_all()
            sock.settimeout(None)
            if lines.readline() != b"ready\n":
                return
            with self._changed:
                self._ready_received[other] = found["incarnation"]
                self._changed.notify_all()

    def _mismatch(self, found: dict[str, Any], expected: int) -> str:
        """Describes why a line is not from the expected worker; "" if it is."""
        if not found:
            return "another program answers, not a worker of tfloss"
        if found.get("workers") != self._addresses:
            return f"it has another list of workers: {found.get('workers')}"
        if found.get("rank") != expected:
            return f"it reports that it is worker {found.get('rank')}"
        return ""


def _listener(port: int) -> socket.socket:
    # All interfaces, as in TensorFlow: the name of a host may not belong to an interface.
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 is compiled in, but disabled on this machine
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
    return socket.create_server(("", port), backlog=512)


def _read(lines: Any) -> dict[str, Any]:
    """Reads the line of another worker. Returns {} for anything else."""
    try:
        found = json.loads(lines.readline(_MAX_LINE_BYTES))
    except ValueError:
        return {}
    return (
        found
        if isinstance(found, dict) and found.get("tfloss") == "worker" and "incarnation" in found
        else {}
    )


def _describe(error: OSError | UnicodeError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return f"its name can't be resolved, {error.strerror}"
    return (getattr(error, "strerror", None) or str(error)).lower()
