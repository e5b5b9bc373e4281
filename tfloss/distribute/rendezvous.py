"""Waits until all workers of a cluster are there, for so long and no longer. Host code.

TensorFlow itself waits for an absent worker for ever, says nothing and can't be ended by SIGTERM.
So before TensorFlow starts, the workers meet here, each at its own address:

1. Each listens at its port, and calls all others until they answer. A call and its answer are
   one line each, with the caller's rank and list of workers, so that a worker of another run,
   one with another list, or two that both think they are worker 0 are told apart.
2. Who has been answered by all others says `ready` on those same connections. Who has been
   answered by all, and has heard `ready` from all, closes its port and goes on: everybody has
   seen everybody then, and nobody will call again.

A worker that dies and is started again in the meantime is met again. There is no leader, so each
worker can name those that *it* can't reach, and the connections are the ones that TensorFlow's
collectives will need between each two workers. TensorFlow takes the port over (SO_REUSEADDR).
"""

import contextlib
import json
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfloss.errors import MissingWorkersError

_RETRY = 0.2  # seconds between two calls
_ANSWER = 10.0  # seconds within which a connected worker must say its line
_REMIND = 30.0  # seconds between two lines about who is missing
_LONGEST_LINE = 1_000_000


def wait_for_workers(addresses: Sequence[str], rank: int, timeout: float) -> None:
    """Returns when all workers have called it, each with these same addresses.

    SIGTERM ends the wait with `SystemExit(143)`, in the main thread. Every 30 seconds a line
    on standard error says who is missing.

    Args:
      addresses: those of all workers, `host:port`, in the same order for all.
      rank: which of them this process is.
      timeout: seconds to wait.

    Raises:
      MissingWorkersError: some have not, in this time; it names their addresses.
    """
    meeting = _Meeting(list(addresses), rank)
    begun = time.monotonic()
    reminded = begun
    with _sigterm_ends(meeting), meeting:
        while not meeting.wait(0.1):
            now = time.monotonic()
            if now - begun >= timeout:
                raise MissingWorkersError(
                    f"After {timeout:g} s worker {rank} ({addresses[rank]}) still waits for "
                    f"{meeting.missing()}. Are they started, with the same list of workers, and "
                    "may hosts connect to each other's ports? TFLOSS_CONNECT_TIMEOUT=SECONDS "
                    "waits longer."
                )
            if now - reminded >= _REMIND:
                reminded = now
                sys.stderr.write(f"tfloss: waiting for {meeting.missing()}\n")


@contextlib.contextmanager
def _sigterm_ends(meeting: "_Meeting") -> Iterator[None]:
    def end(signum: int, frame: Any) -> None:
        sys.stderr.write(f"tfloss: ended by SIGTERM while waiting for {meeting.missing()}\n")
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # None: set by native code, which can't be put back; the default ends the program too.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _Meeting:
    """The calls of one worker. A thread for each connection, so that slow names hold up nobody.

    A worker that is started again has the same rank, but another life.
    """

    def __init__(self, addresses: list[str], rank: int):
        self._addresses, self._rank = addresses, rank
        self._others = [other for other in range(len(addresses)) if other != rank]
        line = {"tfloss": "worker", "rank": rank, "workers": addresses, "life": secrets.token_hex()}
        self._line = json.dumps(line).encode() + b"\n"
        self._changed = threading.Condition()
        self._over = False
        self._sockets: set[socket.socket] = set()
        self._problems = dict.fromkeys(self._others, "not called yet")
        self._own_problem = ""
        # Each of these maps the rank of another worker to its life.
        self._callers: dict[int, str] = {}  # those that have called
        self._answered: dict[int, str] = {}  # those that have answered
        self._told: dict[int, str] = {}  # those that know that all have answered this worker
        self._ready: dict[int, str] = {}  # those that say that all have answered them

    def __enter__(self) -> "_Meeting":
        self._listening = self._start(self._listen)
        for other in self._others:
            self._start(self._call, other)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        self._listening.join()  # then the port is free

    def wait(self, seconds: float) -> bool:
        """Whether everybody has seen everybody; waits for it so long."""
        everybody = len(self._others)
        with self._changed:
            return self._changed.wait_for(
                lambda: self._complete() and len(self._told) == len(self._ready) == everybody,
                seconds,
            )

    def missing(self) -> str:
        """Who is missing, and why, for a message."""
        with self._changed:
            found = [self._own_problem] if self._own_problem else []
            for other in self._others:
                if other not in self._answered:
                    problem = self._problems[other]
                elif other not in self._ready:
                    problem = "it is there, but not all others have answered it; see its output"
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
    def _kept(self, sock: socket.socket) -> Iterator[None]:
        """Closes the socket at the end of the block, which the end of the meeting brings about."""
        with sock:
            with self._changed:
                if self._over:
                    raise ConnectionAbortedError("the meeting is over")
                self._sockets.add(sock)
            try:
                yield
            finally:
                with self._changed:
                    self._sockets.discard(sock)

    def _call(self, other: int) -> None:
        """Calls another worker until it answers, and again if it goes away too early."""
        while not self._over:
            try:
                problem = self._one_call(other)
            except (OSError, UnicodeError) as error:  # the latter of a name no host can have
                problem = _in_words(error)
            with self._changed:
                # One that has been told may be done and gone, unless it calls in another life.
                self._changed.wait_for(
                    lambda: (
                        self._over
                        or other not in self._told
                        or self._callers.get(other, self._told[other]) != self._told[other]
                    )
                )
                self._told.pop(other, None)
                self._answered.pop(other, None)
                self._problems[other] = problem
                self._changed.wait_for(lambda: self._over, _RETRY)

    def _one_call(self, other: int) -> str:
        host, _, port = self._addresses[other].rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER)
        with self._kept(sock), sock.makefile("rb") as lines:
            sock.sendall(self._line)
            found = _read(lines)
            if problem := self._objection(found, other):
                return problem
            with self._changed:
                self._answered[other] = found["life"]
                self._changed.notify_all()
            self._start(self._tell, other, sock)
            # Nothing comes from here on but the end, which may take as long as the slowest.
            sock.settimeout(None)
            lines.readline()
        return "it answered, and went away"

    def _tell(self, other: int, sock: socket.socket) -> None:
        """Says `ready` to another worker once all have answered, unless it is gone before."""
        with self._changed, contextlib.suppress(OSError):
            life = self._answered.get(other)
            self._changed.wait_for(
                lambda: self._over or self._complete() or self._answered.get(other) != life
            )
            if life and self._complete() and self._answered[other] == life:
                sock.sendall(b"ready\n")
                self._told[other] = life
                self._changed.notify_all()

    def _listen(self) -> None:
        port = int(self._addresses[self._rank].rpartition(":")[2])
        while not self._over:
            try:
                listener = _listener(port)
            except OSError as error:
                self._own_problem = f"its own port {port} ({_in_words(error)})"
                time.sleep(_RETRY)
                continue
            self._own_problem = ""
            with contextlib.suppress(OSError), self._kept(listener):
                listener.settimeout(_RETRY)
                while not self._over:
                    with contextlib.suppress(TimeoutError):
                        self._start(self._answer, listener.accept()[0])

    def _answer(self, sock: socket.socket) -> None:
        """Answers a caller, and waits until it is ready."""
        with contextlib.suppress(OSError), self._kept(sock), sock.makefile("rb") as lines:
            sock.settimeout(_ANSWER)
            found = _read(lines)
            if not found:
                return
            sock.sendall(self._line)  # also to one that doesn't belong here, so that it can say so
            other = found.get("rank")
            if other not in self._others or self._objection(found, other):
                return
            with self._changed:
                self._callers[other] = found["life"]
                self._ready.pop(other, None)
                self._changed.notify_all()
            sock.settimeout(None)
            if lines.readline() != b"ready\n":
                return
            with self._changed:
                self._ready[other] = found["life"]
                self._changed.notify_all()

    def _objection(self, found: dict[str, Any], expected: int) -> str:
        """Why a line isn't that of the worker that is expected, or nothing."""
        if not found:
            return "something answers that is not a worker of tfloss"
        if found.get("workers") != self._addresses:
            return f"its list of workers is another one: {found.get('workers')}"
        if found.get("rank") != expected:
            return f"it says that it is worker {found.get('rank')}"
        return ""


def _listener(port: int) -> socket.socket:
    # All interfaces, as TensorFlow does: the name of a host need not be that of an interface.
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # compiled in, but switched off on this machine
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
    return socket.create_server(("", port), backlog=512)


def _read(lines: Any) -> dict[str, Any]:
    """The line of another worker; empty for anything else."""
    try:
        found = json.loads(lines.readline(_LONGEST_LINE))
    except ValueError:
        return {}
    return (
        found
        if isinstance(found, dict) and found.get("tfloss") == "worker" and "life" in found
        else {}
    )


def _in_words(error: OSError | UnicodeError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return f"its name can't be resolved, {error.strerror}"
    return (getattr(error, "strerror", None) or str(error)).lower()
