"""Messages between the workers of a cluster, beside TensorFlow. Host code, no TensorFlow.

    channel = ControlChannel(connections, addresses, rank)
    values = channel.gather("the settings of the run", {"clip_norm": 1.0})

The channel uses the connections that the rendezvous made, between each pair of workers. It stays
open for the life of the process. TensorFlow's collectives hang, or fail with an error about shapes,
if the workers don't do the same. The channel knows more: at which place of the program each worker
is, why a worker has failed, and that a worker is gone. The system closes the connections of a
process that dies, and it closes those to a host that does not answer for 30 seconds.

A message is one line of JSON. Nothing that arrives is ever run.
"""

import atexit
import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from tfloss.common.logger import logger
from tfloss.distribute.rendezvous import Connections
from tfloss.errors import ClusterError, WorkerError

_MAX_LINE_BYTES = 256 * 2**20
_LOG_SECONDS = 60.0  # between two messages about workers that are waited for
_DEFAULT_TIMEOUT = 3600.0
_FAREWELL_SECONDS = 5.0  # after which a worker that waits for one that has ended is woken
_ENDED = "its process has ended; see its output"
_FOLLOWED = WorkerError.__name__
_LOST = "it was lost: its process was killed, or its host can't be reached"

Listener = Callable[[int, str], None]


class ControlChannel:
    """This worker's side of the channel. It can be used from several threads.

    Args:
      connections: The connections to each other worker, by rank.
      addresses: The addresses of all workers.
      rank: The rank of this worker.
      timeout: Seconds that `gather` waits for another worker. None: the value of the variable
        TFLOSS_WORKER_TIMEOUT, or an hour.

    Attributes:
      addresses: The addresses of all workers.
      rank: The rank of this worker.
      timeout: Seconds that `gather` waits for another worker.
      verdict: The message of the first `error`, or "".
    """

    def __init__(
        self,
        connections: Mapping[int, Connections],
        addresses: Sequence[str],
        rank: int,
        timeout: float | None = None,
    ):
        self.addresses, self.rank = tuple(addresses), rank
        self.timeout = worker_timeout() if timeout is None else timeout
        self._others = sorted(connections)
        self._changed = threading.Condition()
        self._gathering = threading.Lock()
        self._count = 0
        self._received: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)  # [count][rank]
        self._ends: dict[int, str] = {}  # why a worker can't be waited for
        self._errors: dict[int, str] = {}  # the errors that the workers have reported
        self._listeners: dict[str, list[Listener]] = defaultdict(list)
        self.verdict = ""
        self._failed = False  # whether this worker has reported an error
        self._leaving = False
        self._links = _Links(connections, self._handle, self._end)
        self._links.start()
        atexit.register(self.close)

    def name(self, rank: int) -> str:
        """Names a worker in a message: its rank and its address."""
        return f"worker {rank} ({self.addresses[rank]})"

    def listen(self, event: str, listener: Listener) -> None:
        """Calls a function when something happens to another worker.

        Args:
          event: "ended" (the process ended by itself), "lost", or the kind of a message of `tell`.
          listener: It is called in a thread of the channel with the rank of the worker and a text.
            It is called at once for workers that have ended or were lost before.
        """
        with self._changed:
            self._listeners[event].append(listener)
            ends = list(self._ends.items())
        for rank, reason in ends:
            if (reason == _LOST) == (event == "lost") and event in ("lost", "ended"):
                listener(rank, reason)

    def tell(self, kind: str, text: str) -> None:
        """Sends a message to all other workers, for the functions that `listen` was given.

        Args:
          kind: The kind of the message, such as "error".
          text: The message.
        """
        self._failed |= kind == "error"
        self._links.send({"tell": kind, "text": text})

    def gather(self, place: str, value: Any, *, forget_errors: bool = False) -> list[Any]:
        """Waits until all workers have called it, and returns what each one gave.

        Args:
          place: What the program does here, for messages: "save a checkpoint". Workers that are at
            different places don't do the same.
          value: A JSON value.
          forget_errors: Whether errors that the workers reported before no longer count, since the
            workers continue.

        Returns:
          The values of all workers, by rank.

        Raises:
          WorkerError: A worker is at another place, has ended, was lost, or did not come within
            `timeout` seconds. The message names it, and its address.
        """
        if self.verdict:
            raise WorkerError(self.verdict)
        with self._gathering:
            self._count += 1
            count = self._count
            self._failed &= not forget_errors
            self._links.send(
                {"count": count, "place": place, "value": value, "forget_errors": forget_errors}
            )
            found = self._wait(count, place)
        found[self.rank] = {"place": place, "value": value}
        if any(one["place"] != place for one in found.values()):
            each = "; ".join(f"{self.name(r)}: {found[r]['place']}" for r in sorted(found))
            raise self.error(
                f"The workers do different things. They are at: {each}. All workers must run the "
                "same program, with the same arguments. Code that only one of them runs must not "
                "create variables, train, evaluate or save."
            )
        return [found[rank]["value"] for rank in sorted(found)]

    def error(self, text: str) -> WorkerError:
        """Makes an error that the workers can't go on after.

        Keras may swallow it while it builds a layer. So it is raised at each later `gather`, too.

        Args:
          text: The message.

        Returns:
          The error to raise.
        """
        with self._changed:
            self.verdict = self.verdict or text
        return WorkerError(text)

    def failure(self, seconds: float = 0.0) -> str:
        """Describes why the workers can't go on: a difference, an error, an end; "" if they can.

        Args:
          seconds: How long to wait for a reason. TensorFlow may know before it that a worker is
            gone, since its messages come on other connections.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.verdict or self._errors or self._ends, seconds)
            if self.verdict:
                return self.verdict.removesuffix(".")
            # An error of a worker that has failed because of another one says less.
            first = [r for r, text in self._errors.items() if not text.startswith(_FOLLOWED)]
            alone = [rank for rank in self._ends if rank not in self._errors]
            return "; ".join(self._failures(sorted(first or alone or self._errors)))

    def close(self) -> None:
        """Tells the other workers that this process ends by itself, and closes the connections.

        After an error it waits, for 5 seconds at most, until the others end, too: TensorFlow may
        still need this process for collectives that are complete on this side only, and its
        abrupt end would tell the others less than the error does.
        """
        if self._links.closed or self._leaving:
            return
        self._leaving = True
        self._links.send({"bye": True})
        if self._failed or self.verdict:
            with self._changed, contextlib.suppress(KeyboardInterrupt):
                self._changed.wait_for(self._alone, _FAREWELL_SECONDS)
        self._links.close()

    def _alone(self) -> bool:
        return all(rank in self._ends for rank in self._others)

    def _wait(self, count: int, place: str) -> dict[int, dict[str, Any]]:
        """Waits for the messages of all other workers of this number."""
        start = logged = time.monotonic()
        with self._changed:
            received = self._received[count]
            while missing := [rank for rank in self._others if rank not in received]:
                gone = [rank for rank in missing if rank in self._ends]
                if gone or any(one["place"] != place for one in received.values()):
                    break
                now = time.monotonic()
                if now - start >= self.timeout:
                    raise self.error(
                        f"{self.name(self.rank)} has waited {self.timeout:g} s at: {place}. It "
                        f"waits for {', '.join(map(self.name, missing))}. If a worker may take "
                        "longer, set TFLOSS_WORKER_TIMEOUT=SECONDS."
                    )
                if now - logged >= _LOG_SECONDS:
                    logged = now
                    logger.info(
                        f"{self.name(self.rank)} waits at: {place}. It waits for "
                        f"{', '.join(map(self.name, missing))} since {now - start:.0f} s"
                    )
                self._changed.wait(min(1.0, self.timeout))
            found = dict(self._received.pop(count))
            if gone := [rank for rank in missing if rank in self._ends]:
                raise self.error(
                    f"{'; '.join(self._failures(gone))}. {self.name(self.rank)} waited for it at: "
                    f"{place}."
                )
        return found

    def _failures(self, ranks: Sequence[int]) -> list[str]:
        """Describes what has happened to workers, each as a sentence without its period."""
        found: list[str] = []
        for rank in ranks:
            error = self._errors.get(rank)
            what = f"it has failed with {error}" if error else self._ends[rank]
            found.append(f"{self.name(rank)}: {what}")
        return [one[0].upper() + one[1:] for one in found]

    def _handle(self, rank: int, message: Mapping[str, Any]) -> None:
        if "count" in message:
            with self._changed:
                self._received[int(message["count"])][rank] = {
                    "place": str(message["place"]),
                    "value": message["value"],
                }
                if message["forget_errors"]:  # later reports count, however late this message is
                    self._errors.pop(rank, None)
                self._changed.notify_all()
        elif "bye" in message:
            self._end(rank, "ended", _ENDED)
        else:
            kind, text = str(message["tell"]), str(message["text"])
            if kind == "error":
                with self._changed:
                    self._errors.setdefault(rank, text)
                    self._changed.notify_all()
            self._call(kind, rank, text)

    def _end(self, rank: int, event: str, reason: str) -> None:
        """Notes that nothing more comes from a worker."""
        with self._changed:
            if rank in self._ends:
                return
            self._ends[rank] = reason
            self._changed.notify_all()
        if not (self._leaving or self._links.closed):
            self._call(event, rank, reason)

    def _call(self, event: str, rank: int, text: str) -> None:
        with self._changed:
            listeners = list(self._listeners[event])
        for listener in listeners:
            listener(rank, text)


class _Links:
    """Sends and receives lines of JSON on the connections to the other workers.

    Args:
      connections: The connections to each other worker, by rank.
      handle: Is given the rank of a worker and a message. It raises for a message that is none.
      end: Is given the rank, the event and the reason when nothing more comes from a worker.

    Attributes:
      closed: Whether this process has ended its side.
    """

    def __init__(
        self,
        connections: Mapping[int, Connections],
        handle: Callable[[int, Mapping[str, Any]], None],
        end: Callable[[int, str, str], None],
    ):
        self.connections, self._handle, self._end = dict(connections), handle, end
        self.closed = False
        self._sending = threading.Lock()
        # The connections must close when this process dies, even if a child lives on.
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Starts to receive."""
        threading.Thread(target=self._read, name="tfloss-channel", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message to all other workers."""
        with self._sending:
            send(self.connections, message)

    def close(self) -> None:
        """Ends the side of this process."""
        self.closed = True
        for pair in self.connections.values():
            with contextlib.suppress(OSError):
                pair.outgoing.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        """Receives all messages, in a thread of its own."""
        selector = selectors.DefaultSelector()
        rest: dict[int, bytes] = {}
        for rank, pair in self.connections.items():
            selector.register(pair.incoming, selectors.EVENT_READ, rank)
            selector.register(pair.outgoing, selectors.EVENT_READ, rank)
            rest[rank] = self._take(rank, pair.received)
        while not self.closed and selector.get_map():
            for key, _ in selector.select(1.0):
                rank, sock = key.data, cast(socket.socket, key.fileobj)
                incoming = sock is self.connections[rank].incoming
                try:
                    received = sock.recv(2**16)
                except OSError:
                    received = b""
                if received and incoming and len(rest[rank]) < _MAX_LINE_BYTES:
                    rest[rank] = self._take(rank, rest[rank] + received)
                    continue
                selector.unregister(sock)
                if incoming:  # what was sent before is read first
                    self._end(rank, "lost", _LOST)

    def _take(self, rank: int, received: bytes) -> bytes:
        """Handles the complete lines of a worker. Returns what follows them."""
        *lines, rest = received.split(b"\n")
        for line in lines:
            try:
                self._handle(rank, json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self._end(rank, "lost", "it sent what no worker of this version of tfloss sends")
        return rest

    def _forget(self) -> None:
        """Closes the copies of the connections that a forked child has."""
        self.closed = True
        for pair in self.connections.values():
            pair.close()


def send(connections: Mapping[int, Connections], message: Mapping[str, Any]) -> None:
    """Sends a message to all other workers, as `ControlChannel` receives them.

    Args:
      connections: The connections to each other worker, by rank.
      message: JSON values.
    """
    line = json.dumps(message).encode() + b"\n"
    for pair in connections.values():
        with contextlib.suppress(OSError):  # the reader finds out that it is gone
            pair.outgoing.sendall(line)


def worker_timeout() -> float:
    """Returns the seconds that a worker waits for another one, from the environment variables.

    Raises:
      ClusterError: The variable is not a positive number.
    """
    text = os.environ.get("TFLOSS_WORKER_TIMEOUT") or str(_DEFAULT_TIMEOUT)
    try:
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    except ValueError:
        pass
    raise ClusterError(
        f"The variable TFLOSS_WORKER_TIMEOUT must be a positive number of seconds, got {text!r}."
    )
