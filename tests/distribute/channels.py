"""Control channels of several workers inside one process, for tests."""

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator

from tfloss.distribute.control_channel import ControlChannel
from tfloss.distribute.rendezvous import Connections


@contextlib.contextmanager
def channels(count: int, timeout: float = 10.0) -> Iterator[list[ControlChannel]]:
    """Channels that are connected with each other; closed at the end."""
    addresses = [f"host{rank}:2222" for rank in range(count)]
    pairs = {}
    for one in range(count):
        for other in range(count):
            if one != other:
                pairs[one, other] = socket.socketpair()  # what `one` sends, `other` receives
    made = [
        ControlChannel(
            {
                other: Connections(pairs[rank, other][0], pairs[other, rank][1])
                for other in range(count)
                if other != rank
            },
            addresses,
            rank,
            timeout,
        )
        for rank in range(count)
    ]
    try:
        yield made
    finally:
        # One that has failed waits until the others end.
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(ControlChannel.close, made))
        for ends in pairs.values():
            for sock in ends:
                sock.close()


def lose(channel: ControlChannel) -> None:
    """Closes the connections of a worker as the system does when its process is killed."""
    channel._links.closed = True
    for pair in channel._links.connections.values():
        for sock in (pair.outgoing, pair.incoming):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
