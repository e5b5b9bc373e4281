"""The port of a worker."""

import contextlib
import socket
import threading
import time

from tfloss.distribute import listener
from tfloss.distribute.allowed_hosts import AllowedHosts
from tfloss.distribute.launch import free_ports
from tfloss.distribute.listener import Listener


@contextlib.contextmanager
def listening(addresses, answer, allowed=None):
    """A listener that runs, and what it said of its port."""
    done = threading.Event()
    one = Listener(addresses, 0, allowed)
    thread = threading.Thread(target=one.run, args=(answer, done.is_set))
    thread.start()
    try:
        yield one
    finally:
        done.set()
        thread.join()


def connect(port, host="127.0.0.1"):
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def greet(sock):
    with sock:
        sock.sendall(b"hello")


def test_an_address_that_is_not_of_this_host_opens_all_interfaces(messages, monkeypatch):
    """Behind a forwarded port, the cluster names the address of the outside."""
    (port,) = free_ports(1)
    with listening([f"192.0.2.1:{port}", "a:1"], greet):  # an address for documentation
        with connect(port, "127.0.0.1") as sock:
            assert sock.recv(10) == b"hello"
    assert messages == [
        "worker 0 listens on all interfaces, because 192.0.2.1 is not the address of one of them"
    ]


def test_a_host_that_is_not_in_the_cluster_is_ignored_and_told_once(messages, monkeypatch):
    (port,) = free_ports(1)
    addresses = [f"127.0.0.1:{port}", "127.0.0.1:1"]
    monkeypatch.setattr(AllowedHosts, "allows", lambda self, ip: False)
    with listening(addresses, greet, AllowedHosts(addresses)):
        for _ in range(3):
            with connect(port) as sock:
                assert sock.recv(10) == b""
    assert len(messages) == 1 and "ignored a connection from 127.0.0.1" in messages[0]


def test_the_oldest_stranger_goes_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(listener, "_MAX_STRANGERS", 2)
    (port,) = free_ports(1)

    def wait(sock):
        with sock:
            sock.recv(1)

    addresses = [f"127.0.0.1:{port}"]
    with listening(addresses, wait), contextlib.ExitStack() as stack:
        socks = []
        for _ in range(5):  # one more than 2 + 2
            socks.append(stack.enter_context(connect(port)))
            time.sleep(0.05)
        assert socks[0].recv(1) == b""
        socks[1].settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(socks[1].recv(1))
