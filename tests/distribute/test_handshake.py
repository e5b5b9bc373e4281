"""Two workers introduce themselves to each other, over a pair of sockets."""

import hmac
import json
import socket
import threading

import pytest

from tfloss.distribute.handshake import Identity, LineReader

ADDRESSES = ["a:1", "b:2"]


def meet(caller, callee, other=1):
    """What the caller finds (hello, problem), what the callee finds, and the bytes they sent."""
    one, two = socket.socketpair()
    with one, two:
        found = {}

        def answer():
            found["callee"] = callee.answer(two, LineReader(two))
            two.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()
        found["caller"] = caller.call(one, LineReader(one), other, "n1")
        one.shutdown(socket.SHUT_WR)
        thread.join()
        return found["caller"], found["callee"]


@pytest.mark.parametrize("secret", ["", "word"])
def test_both_know_each_other(secret):
    caller, callee = Identity(ADDRESSES, 0, secret), Identity(ADDRESSES, 1, secret)

    (found, problem), heard = meet(caller, callee)

    assert problem == "" and found["incarnation"] == callee.incarnation
    assert (heard["rank"], heard["nonce"]) == (0, "n1")
    assert heard["incarnation"] == caller.incarnation


@pytest.mark.parametrize(
    ("caller", "callee", "message"),
    [
        (("", ADDRESSES, 0), ("word", ADDRESSES, 1), "another TFLOSS_CLUSTER_SECRET"),
        (("word", ADDRESSES, 0), ("World", ADDRESSES, 1), "another TFLOSS_CLUSTER_SECRET"),
        (("", ADDRESSES, 0), ("", ["a:1", "c:2"], 1), "another list of workers, with 2 entries"),
        (("", ADDRESSES, 0), ("", ADDRESSES, 0), "it reports that it is worker 0"),
    ],
)
def test_a_difference_is_named_and_the_callee_believes_nothing(caller, callee, message):
    (_, problem), heard = meet(Identity(*caller[1:], caller[0]), Identity(*callee[1:], callee[0]))

    assert message in problem and heard is None


def test_a_recorded_call_does_not_serve_again():
    first, callee = Identity(ADDRESSES, 0, "word"), Identity(ADDRESSES, 1, "word")
    one, two = socket.socketpair()
    sent = []

    class Recorder:
        def __init__(self, sock):
            self.sendall = lambda content: (sent.append(content), sock.sendall(content))

    with one, two:
        thread = threading.Thread(target=callee.answer, args=(two, LineReader(two)))
        thread.start()
        first.call(Recorder(one), LineReader(one), 1, "n1")
        thread.join()

    one, two = socket.socketpair()
    with one, two:
        one.sendall(b"".join(sent))
        assert callee.answer(two, LineReader(two)) is None


def test_proofs_are_compared_in_constant_time(monkeypatch):
    """An attacker could measure how much of a proof is right, one letter after the other."""
    same, compared = hmac.compare_digest, []

    def compare(one, two):
        compared.append((one, two))
        return same(one, two)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    meet(Identity(ADDRESSES, 0, "word"), Identity(ADDRESSES, 1, "word"))

    assert len(compared) == 2 and all(len(one) == 64 for pair in compared for one in pair)


HELLO = {"tfloss": "worker", "rank": 0, "cluster": "c", "workers": 2, "incarnation": "i"}


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe\x00\n",
        b"{}\n",
        b"[" * 3000 + b"\n",
        b"x" * 100_000,
        b"",
        json.dumps(HELLO).encode() + b"\n",  # without a random number
        *(
            json.dumps(HELLO | {"nonce": "n", name: value}).encode() + b"\n"
            for name, value in [("rank", -1), ("rank", 10**30), ("rank", True), ("cluster", [])]
        ),
    ],
    ids=lambda line: repr(line[:20]),
)
def test_garbage_is_nobody(line):
    one, two = socket.socketpair()
    with one, two:
        sending = threading.Thread(target=lambda: (one.sendall(line), one.shutdown(socket.SHUT_WR)))
        sending.start()
        assert Identity(ADDRESSES, 1).answer(two, LineReader(two)) is None
        two.close()
        sending.join()


def test_lines_are_read_one_by_one():
    one, two = socket.socketpair()
    with one, two:
        lines = LineReader(two)
        one.sendall(b'{"a": 1}\nready\nrest')
        assert lines.message() == {"a": 1}
        assert lines.line() == b"ready" and lines.rest == b"rest"
        one.sendall(b"x" * 4000 + b"\nmore")
        assert lines.line() == b"rest" + b"x" * 4000
