"""Accepts connections on a worker's own port. Host code, no TensorFlow."""

import contextlib
import errno
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from tfloss.common.logger import logger
from tfloss.distribute.allowed_hosts import AllowedHosts, host_of, listen_addresses
from tfloss.distribute.handshake import VARIABLE

_RETRY_SECONDS = 0.2  # between two attempts to open the port
_MAX_STRANGERS = 64  # open connections of those who are not believed yet


class Listener:
    """Accepts connections on this worker's port.

    Args:
      addresses: The addresses of all workers.
      rank: The index of this worker's address.
      allowed: The hosts that connections are accepted from. None: all.

    Attributes:
      problem: Why this worker can't be reached; "" if it can.
    """

    def __init__(self, addresses: Sequence[str], rank: int, allowed: AllowedHosts | None):
        self.problem = ""
        self._addresses, self._rank, self._allowed = addresses, rank, allowed
        self._lock = threading.Lock()
        self._strangers: OrderedDict[socket.socket, None] = OrderedDict()
        self._limit = _MAX_STRANGERS + 2 * len(addresses)
        self._ignored: set[str] = set()

    def run(self, answer: Callable[[socket.socket], None], closed: Callable[[], bool]) -> None:
        """Accepts connections until `closed` returns true, each in a thread of its own."""
        port = int(self._addresses[self._rank].rpartition(":")[2])
        while not closed():
            with contextlib.ExitStack() as stack:
                try:
                    listening = [stack.enter_context(one) for one in self._open(port)]
                except OSError as error:
                    self.problem = f"its own port {port} ({describe(error)})"
                    time.sleep(_RETRY_SECONDS)
                    continue
                self.problem = ""
                while not closed():
                    for one in select.select(listening, [], [], _RETRY_SECONDS)[0]:
                        with contextlib.suppress(OSError):
                            sock, source = one.accept()
                            arguments = (sock, str(source[0]), answer)
                            threading.Thread(
                                target=self._accept, args=arguments, daemon=True
                            ).start()

    def introduced(self, sock: socket.socket) -> None:
        """Notes that a connection is believed, or over."""
        with self._lock:
            self._strangers.pop(sock, None)

    def _accept(
        self, sock: socket.socket, ip: str, answer: Callable[[socket.socket], None]
    ) -> None:
        with self._lock:
            self._strangers[sock] = None
            if len(self._strangers) > self._limit:  # workers introduce themselves at once
                oldest, _ = self._strangers.popitem(last=False)
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        try:
            if self._allows(ip):
                answer(sock)
            else:
                sock.close()
        finally:
            self.introduced(sock)

    def _allows(self, ip: str) -> bool:
        if self._allowed is None:
            return True
        with self._lock:
            if self._allowed.allows(ip):
                return True
            new = ip not in self._ignored and len(self._ignored) < 10
            self._ignored.add(ip)
        if new:
            logger.warning(
                f"ignored a connection from {ip}, which is the address of no worker. If a worker "
                f"connects from there, list it by this address, or set {VARIABLE} on all workers."
            )
        return False

    def _open(self, port: int) -> list[socket.socket]:
        """Listens at this worker's address; on all interfaces if that is not one of this host."""
        listening: list[socket.socket] = []
        hosts = listen_addresses(self._addresses, self._rank)
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                try:
                    listening.append(socket.create_server((host, port), family=family, backlog=512))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise
        except OSError:
            for one in listening:
                one.close()
            raise
        if listening:
            return listening
        logger.info(
            f"worker {self._rank} listens on all interfaces, because "
            f"{host_of(self._addresses[self._rank])} is not the address of one of them"
        )
        return [_on_all_interfaces(port)]


def _on_all_interfaces(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 is compiled in, but disabled on this machine
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
    return socket.create_server(("", port), backlog=512)


def describe(error: OSError | UnicodeError) -> str:
    """Describes why a connection failed, for a message."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return f"its name can't be resolved, {error.strerror}"
    return (getattr(error, "strerror", None) or str(error)).lower()
