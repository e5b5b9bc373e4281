"""Workers wait for each other, as real processes."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tfloss.distribute import listener
from tfloss.distribute.handshake import Identity, LineReader
from tfloss.distribute.launch import free_ports
from tfloss.distribute.rendezvous import wait_for_workers
from tfloss.errors import MissingWorkersError

CODE = """
import signal, sys, time
from tfloss.errors import MissingWorkersError
from tfloss.distribute.rendezvous import wait_for_workers

rank, timeout, addresses = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split(",")
secret = sys.argv[4]
signal.signal(signal.SIGTERM, handler := lambda *_: None)
print("waits", flush=True)
begun = time.monotonic()
try:
    wait_for_workers(addresses, rank, timeout, secret)
except MissingWorkersError as error:
    sys.exit(f"{time.monotonic() - begun:.1f} s: {error}")
assert signal.getsignal(signal.SIGTERM) is handler
# What TensorFlow does next: open the port, and reach the others.
import socket
listener = socket.create_server(("", int(addresses[rank].split(":")[1])))
print("met", flush=True)
sys.stdin.read()  # as long as workers train; whoever ends is lost to those that haven't met yet
"""


@pytest.fixture
def addresses():
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


@pytest.fixture
def start():
    """Starts a worker, and ends it with the test."""
    with contextlib.ExitStack() as stack:

        def begin(rank, addresses, timeout=60.0, secret=""):
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(rank), str(timeout), ",".join(addresses), secret],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout.readline() == "waits\n"
            return process

        yield begin


def test_all_go_on_when_the_last_has_come(addresses, start):
    workers = [start(rank, addresses) for rank in (0, 1)]
    time.sleep(1.0)
    assert [worker.poll() for worker in workers] == [None, None]

    workers.append(start(2, addresses))

    meet(*workers)


def meet(*workers):
    """Waits until all of them have met."""
    for worker in workers:
        assert worker.stdout.readline() == "met\n", worker.stderr.read()
    for worker in workers:
        assert worker.communicate(timeout=60) == ("", "")


def until_open(address):
    """Waits until a worker has opened its port."""
    host, port = address.split(":")
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens at {address}")


@pytest.mark.promise(17)
def test_an_absent_worker_is_named_in_time(addresses, start):
    workers = [start(rank, addresses, timeout=1.0) for rank in (0, 2)]

    for rank, worker in zip((0, 2), workers, strict=True):
        _, error = worker.communicate(timeout=30)
        assert worker.returncode == 1
        assert 1.0 <= float(error.split()[0]) < 20.0  # on a busy machine
        assert f"After 1 s worker {rank} ({addresses[rank]}) still waits for" in error
        assert f"worker 1 ({addresses[1]}: connection refused)" in error
        assert "To wait longer, set TFLOSS_CONNECT_TIMEOUT=SECONDS" in error


@pytest.mark.promise(17)
def test_sigterm_ends_the_wait(addresses, start):
    worker = start(0, addresses[:2], timeout=60.0)
    until_open(addresses[0])
    worker.send_signal(signal.SIGTERM)

    _, error = worker.communicate(timeout=30)
    assert worker.returncode == 128 + signal.SIGTERM
    assert error == (
        "tfloss: ended by SIGTERM while waiting for "
        f"worker 1 ({addresses[1]}: connection refused)\n"
    )


def test_a_worker_that_is_started_again_is_met_again(addresses, start):
    first, doomed = start(0, addresses), start(1, addresses)
    time.sleep(0.5)
    doomed.kill()
    doomed.wait()
    last = start(2, addresses)
    time.sleep(0.5)
    assert first.poll() is None and last.poll() is None  # the dead one has met only the first

    again = start(1, addresses)

    meet(first, last, again)


def test_another_list_of_workers_is_told(addresses):
    def other():
        with contextlib.suppress(MissingWorkersError):
            wait_for_workers(addresses, 1, timeout=2.0)  # three workers

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(MissingWorkersError, match="worker 1 .*another list of workers, with 3 "):
        wait_for_workers(addresses[:2], 0, timeout=1.5)
    thread.join()


def test_two_that_think_they_are_the_same_are_told(addresses):
    """Worker 0 answers at the address of worker 1, as behind a wrong port forwarding."""
    with socket.create_server(("127.0.0.1", int(addresses[1].split(":")[1]))) as server:

        def answer():
            twin = Identity(addresses[:2], 0)
            with contextlib.suppress(OSError):
                while True:
                    sock = server.accept()[0]
                    twin.answer(sock, LineReader(sock))

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(MissingWorkersError, match="it reports that it is worker 0"):
            wait_for_workers(addresses[:2], 0, timeout=1.5)
        server.shutdown(socket.SHUT_RDWR)


def test_a_stranger_at_the_address_is_told(addresses):
    with socket.create_server(("127.0.0.1", int(addresses[1].split(":")[1]))) as stranger:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    stranger.accept()[0].sendall(b"SSH-2.0\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(MissingWorkersError, match="another program answers, not a worker"):
            wait_for_workers(addresses[:2], 0, timeout=1.5)
        stranger.shutdown(socket.SHUT_RDWR)


def test_strangers_that_call_do_no_harm(addresses, start):
    first = start(0, addresses[:2])
    host, port = addresses[0].split(":")
    until_open(addresses[0])
    for line in (b"GET / HTTP/1.1\r\n", b"\xff\xfe\n", b"{}\n", b'{"tfloss": "worker"}\n', b""):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(line)
    second = start(1, addresses[:2])

    meet(first, second)


def test_an_own_port_in_use_is_told(addresses):
    with socket.create_server(("", int(addresses[0].split(":")[1]))):
        with pytest.raises(MissingWorkersError, match=r"its own port \d+ \(address already in use"):
            wait_for_workers(addresses[:2], 0, timeout=1.0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), "its name can't be resolved, Name or"),
        (UnicodeError("label too long"), "label too long"),
        (TimeoutError(), "no answer"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(error, message, addresses, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(MissingWorkersError, match=rf"worker 1 \(nowhere:1: {message}"):
        wait_for_workers([addresses[0], "nowhere:1"], 0, timeout=0.5)


def both(addresses, timeout, secrets=("", "")):
    """What each of two workers gets: its connections, or the message of its error."""
    found = {}

    def wait(rank):
        try:
            found[rank] = wait_for_workers(addresses[:2], rank, timeout, secrets[rank])
        except MissingWorkersError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0], found[1]


def test_the_connections_stay_open(addresses):
    first, second = both(addresses, 15.0, ("word", "word"))
    with contextlib.closing(first[1]), contextlib.closing(second[0]):
        first[1].outgoing.sendall(b"one")
        second[0].outgoing.sendall(b"two")
        assert second[0].incoming.recv(10) == b"one"
        assert first[1].incoming.recv(10) == b"two"


@pytest.mark.parametrize("secrets", [("right", "wrong"), ("right", "")])
def test_another_secret_is_told_on_both_sides(addresses, secrets):
    for rank, message in enumerate(both(addresses, 2.0, secrets)):
        assert f"worker {1 - rank} ({addresses[1 - rank]}: it has another TFLOSS_CLUSTER" in message
        assert "right" not in message and "wrong" not in message


def test_only_the_address_of_the_cluster_is_open(addresses, start):
    start(0, addresses)
    port = int(addresses[0].split(":")[1])
    until_open(addresses[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def impostor(address, addresses, rank, secret=""):
    """Somebody who knows the list of workers poses as one of them: the answer it gets."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        lines = LineReader(sock)
        found, problem = Identity(addresses, rank, secret).call(sock, lines, 0, "nonce")
        if not problem:
            sock.sendall(b"ready\n")
            while lines.line():  # its questions stay without an answer, until it hangs up
                pass
        return found, problem


def test_an_impostor_is_not_believed(addresses, start):
    """Whoever asks gets no list, stands for no worker, and delays nobody."""
    first = start(0, addresses)
    third = start(2, addresses)
    until_open(addresses[0])

    def pose():
        with contextlib.suppress(OSError):
            impostor(addresses[0], addresses, 1)

    posing = [threading.Thread(target=pose) for _ in range(3)]
    for thread in posing:
        thread.start()
    time.sleep(1.0)
    assert (first.poll(), third.poll()) == (None, None)

    second = start(1, addresses)

    meet(first, second, third)
    for thread in posing:
        thread.join(10)


def test_an_impostor_without_the_secret_gets_no_further(addresses, start):
    worker = start(0, addresses[:2], secret="word")
    until_open(addresses[0])
    found, problem = impostor(addresses[0], addresses[:2], 1)

    assert "another TFLOSS_CLUSTER_SECRET" in problem
    assert addresses[0] not in str(found)  # the list of workers is not given away
    assert worker.poll() is None


def test_slow_clients_delay_nobody(addresses, start):
    first = start(0, addresses[:2])
    host, port = addresses[0].split(":")
    until_open(addresses[0])
    with contextlib.ExitStack() as stack:
        for index in range(200):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(b'{"tfloss"' if index % 2 else b"")
        second = start(1, addresses[:2])
        meet(first, second)


def test_other_hosts_are_ignored(addresses, monkeypatch, messages):
    monkeypatch.setattr(listener.AllowedHosts, "allows", lambda self, ip: False)
    answers = both(addresses, 1.5)

    assert all("another program answers" in one or "reset" in one for one in answers)
    assert messages.count(messages[0]) == 2  # once for each worker
    assert "ignored a connection from 127.0.0.1, which is the address of no worker" in messages[0]

    for one in both(addresses, 15.0, ("word", "word")):  # a secret proves more
        next(iter(one.values())).close()
