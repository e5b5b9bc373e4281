"""Waits until all workers of a cluster have connected, with a timeout. Host code, no TensorFlow.

TensorFlow waits forever for a worker that does not start. It prints nothing, and SIGTERM can't end
it. So the workers connect here before TensorFlow starts, each on its own address:

1. Each worker listens on its port, and connects to all others until they answer. Both sides
   introduce themselves (`tfloss.distribute.handshake`). That reveals a worker of another run, a
   worker with another list, another secret, and two workers with the same rank.
2. A worker calls back before it believes a caller: on its own connection to the address of that
   worker, it asks whether the call came from there. So nobody can pose as a worker who does not
   hold its address.
3. A worker that all others have answered sends `ready` on the same connections. A worker that all
   others have answered, and that has received `ready` from all, closes its port and returns. Then
   every worker has reached every other, and none will connect again.

A worker that dies and is restarted in the meantime connects again. There is no leader, so each
worker can name those that *it* can't reach. The connections are those that TensorFlow's
collectives need, between each pair of workers. TensorFlow reuses the port (SO_REUSEADDR). The
connections stay open for the control channel (`tfloss.distribute.control_channel`).
"""

import contextlib
import dataclasses
import json
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tfloss.common.logger import logger
from tfloss.distribute.allowed_hosts import AllowedHosts, host_of
from tfloss.distribute.handshake import VARIABLE, Identity, LineReader
from tfloss.distribute.listener import Listener, describe
from tfloss.errors import MissingWorkersError

_RETRY_SECONDS = 0.2  # between two attempts to connect
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 10.0  # for a connected worker to send its next line
_LOG_SECONDS = 30.0  # between two messages about missing workers
_READY = b"ready"
# A host that is gone does not close its connections. The system finds out within 30 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


@dataclasses.dataclass(frozen=True)
class Connections:
    """The two connections between this worker and another one.

    Attributes:
      outgoing: The one that this worker has made. It sends on this one.
      incoming: The one that the other worker has made. It receives on this one.
      received: What was received on `incoming` already.
    """

    outgoing: socket.socket
    incoming: socket.socket
    received: bytes = b""

    def close(self) -> None:
        """Closes both."""
        self.outgoing.close()
        self.incoming.close()


def wait_for_workers(
    addresses: Sequence[str], rank: int, timeout: float, secret: str | None = None
) -> dict[int, Connections]:
    """Waits until all workers have called this function with the same addresses.

    A message every 30 seconds names the workers that are missing.

    Args:
      addresses: The addresses of all workers, `host:port`, in the same order on all workers.
      rank: The index of this worker's address.
      timeout: Seconds to wait.
      secret: The secret of the cluster. None: that of the variable TFLOSS_CLUSTER_SECRET.

    Returns:
      The connections to each other worker, by its rank. The caller closes them.

    Raises:
      MissingWorkersError: Some workers did not connect in time. It has their addresses.
      SystemExit: SIGTERM arrived during the wait, in the main thread. The code is 143.
    """
    secret = os.environ.get(VARIABLE, "") if secret is None else secret
    rendezvous = _Rendezvous(list(addresses), rank, secret)
    start = time.monotonic()
    logged = start
    with _exit_on_sigterm(rendezvous), rendezvous:
        while not rendezvous.wait(_POLL_SECONDS):
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
        return rendezvous.connections()


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


@dataclasses.dataclass(eq=False)
class _Caller:
    """Somebody who has connected and has passed the handshake.

    Attributes:
      sock: The connection.
      rank: The rank that it claims to have.
      incarnation: The incarnation that it claims to have.
      nonce: The random number of its call.
      believed: Whether the worker of that rank has confirmed the call; None before it was asked.
    """

    sock: socket.socket
    rank: int
    incarnation: str
    nonce: str
    believed: bool | None = None


class _Rendezvous:
    """The connections of one worker, inside a `with`.

    Each connection has its own thread, so that a slow name server delays no other worker. A worker
    that is restarted has the same rank, but another incarnation.

    Args:
      addresses: The addresses of all workers.
      rank: The index of this worker's address.
      secret: The secret of the cluster, or "".
    """

    def __init__(self, addresses: list[str], rank: int, secret: str):
        self._addresses, self._rank = addresses, rank
        self._others = [other for other in range(len(addresses)) if other != rank]
        self._identity = Identity(addresses, rank, secret)
        # A secret proves more than the address of the host that a connection comes from.
        self._listener = Listener(addresses, rank, None if secret else AllowedHosts(addresses))
        self._changed = threading.Condition()
        self._closed = False
        self._kept: list[Connections] = []  # once all have met
        self._sockets: set[socket.socket] = set()
        self._problems = dict.fromkeys(self._others, "not tried yet")
        self._calls: dict[int, str] = {}  # the random number of the current call to each worker
        self._callers: list[_Caller] = []
        self._outgoing: dict[int, socket.socket] = {}
        self._incoming: dict[int, tuple[socket.socket, LineReader]] = {}
        # Each of these maps the rank of another worker to its incarnation.
        self._answered: dict[int, str] = {}  # workers that have answered this one
        self._ready_sent: dict[int, str] = {}  # workers that this one has sent `ready`
        self._ready_received: dict[int, str] = {}  # workers that have sent this one `ready`

    def __enter__(self) -> "_Rendezvous":
        self._listening = _start(self._listener.run, self._answer, lambda: self._closed)
        for other in self._others:
            _start(self._connect, other)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for sock in self._sockets.difference(self._kept_sockets()):
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
        with self._changed:
            if not self._changed.wait_for(self._met, seconds):
                return False
            for other in self._others:
                outgoing, (incoming, lines) = self._outgoing[other], self._incoming[other]
                outgoing.settimeout(None)
                self._kept.append(Connections(outgoing, incoming, lines.rest))
            return True

    def connections(self) -> dict[int, Connections]:
        """Returns the connections to each other worker, once all have met."""
        with self._changed:
            return dict(zip(self._others, self._kept, strict=True))

    def missing(self) -> str:
        """Describes the missing workers, with the reasons, for a message."""
        with self._changed:
            found = [self._listener.problem] if self._listener.problem else []
            for other in self._others:
                if other not in self._answered:
                    problem = self._problems[other]
                elif other not in self._ready_received:
                    problem = "it is running, but some workers have not answered it; see its output"
                else:
                    continue
                found.append(f"worker {other} ({self._addresses[other]}: {problem})")
            return ", ".join(found)

    def _kept_sockets(self) -> set[socket.socket]:
        return {sock for pair in self._kept for sock in (pair.outgoing, pair.incoming)}

    def _met(self) -> bool:
        sent, received = self._ready_sent, self._ready_received
        return self._complete() and self._answered == sent == received

    def _complete(self) -> bool:
        return len(self._answered) == len(self._others)

    @contextlib.contextmanager
    def _registered(self, sock: socket.socket) -> Generator[None]:
        """Closes the socket at the end of the block, unless all have met on it."""
        with self._changed:
            if self._closed:
                sock.close()
                raise ConnectionAbortedError("the rendezvous is closed")
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._changed:
                self._sockets.discard(sock)
                if sock not in self._kept_sockets():
                    sock.close()

    def _connect(self, other: int) -> None:
        """Connects to another worker until it answers, and again if it ends too early."""
        while not self._closed:
            try:
                problem = self._try_to_connect(other)
            except (OSError, UnicodeError) as error:  # UnicodeError: not a valid name of a host
                problem = describe(error)
            with self._changed:
                if self._kept:
                    return
                self._ready_sent.pop(other, None)
                self._answered.pop(other, None)
                self._problems[other] = problem
                self._changed.wait_for(lambda: self._closed, _RETRY_SECONDS)

    def _try_to_connect(self, other: int) -> str:
        """Connects once, and stays connected as long as possible. Returns what went wrong."""
        address = self._addresses[other]
        port = int(address.rpartition(":")[2])
        nonce = secrets.token_hex(16)
        with self._changed:
            self._calls[other] = nonce
        sock = socket.create_connection((host_of(address), port), timeout=_ANSWER_SECONDS)
        keep_alive(sock)
        with self._registered(sock):
            lines = LineReader(sock)
            found, problem = self._identity.call(sock, lines, other, nonce)
            if problem:
                return problem
            with self._changed:
                self._outgoing[other] = sock
                self._answered[other] = found["incarnation"]
                self._changed.notify_all()
            self._serve(other, sock, lines, found["incarnation"])
        return "it answered, then closed the connection"

    def _serve(self, other: int, sock: socket.socket, lines: LineReader, incarnation: str) -> None:
        """Asks about callers, and sends `ready` once all have answered, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _POLL_SECONDS)
                if self._closed:
                    return
                callers = [c for c in self._callers if c.rank == other and c.believed is None]
                # Asked first: nothing but the control channel's messages follows `ready`.
                known = any(c.rank == other and c.believed for c in self._callers)
                if self._complete() and known and other not in self._ready_sent:
                    sock.sendall(_READY + b"\n")
                    self._ready_sent[other] = incarnation
                    self._changed.notify_all()
            for caller in callers:
                sock.sendall(json.dumps({"is_yours": caller.nonce}).encode() + b"\n")
                answer = lines.message()
                if not answer:
                    return
                believed = answer.get("yours") is True and caller.incarnation == incarnation
                with self._changed:
                    caller.believed = believed
                    if not believed:
                        with contextlib.suppress(OSError):
                            caller.sock.shutdown(socket.SHUT_RDWR)
                    self._changed.notify_all()
            if not self._closed and select.select([sock], [], [], 0)[0]:
                return  # the other worker sends nothing unasked: it has closed the connection

    def _answer(self, sock: socket.socket) -> None:
        """Answers a worker that has connected, and waits until it sends `ready`."""
        with contextlib.suppress(OSError), self._registered(sock):
            sock.settimeout(_ANSWER_SECONDS)
            keep_alive(sock)
            lines = LineReader(sock)
            found = self._identity.answer(sock, lines)
            if found is None:
                return
            caller = _Caller(sock, found["rank"], found["incarnation"], found["nonce"])
            with self._changed:
                self._callers.append(caller)
                self._changed.notify_all()
            sock.settimeout(None)
            try:
                self._listen_to(caller, sock, lines)
            finally:
                with self._changed:
                    self._callers.remove(caller)

    def _listen_to(self, caller: _Caller, sock: socket.socket, lines: LineReader) -> None:
        """Answers the questions of a caller until it is ready."""
        other = caller.rank
        while line := lines.line():
            if line == _READY:
                break
            with contextlib.suppress(ValueError, AttributeError):
                yours = json.loads(line).get("is_yours") == self._calls.get(other)
                sock.sendall(json.dumps({"yours": yours}).encode() + b"\n")
        else:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closed or caller.believed is not None)
            if self._closed or not caller.believed:
                return
            self._listener.introduced(sock)
            self._incoming[other] = (sock, lines)
            self._ready_received[other] = caller.incarnation
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed)


def _start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def keep_alive(sock: socket.socket) -> None:
    """Lets the system find out within 30 seconds that the other host is gone."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
