"""Messages between workers: three of them in one process, and real processes."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.distribute.channels import channels, lose
from tfloss.distribute import control_channel
from tfloss.distribute.control_channel import worker_timeout
from tfloss.distribute.launch import free_ports
from tfloss.errors import ClusterError, WorkerError


def on_all(made, function):
    """What the function gives on each worker, or its error."""

    def call(channel):
        try:
            return function(channel)
        except WorkerError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(made)) as pool:
        return list(pool.map(call, made))


def test_every_worker_gets_the_values_of_all():
    with channels(3) as made:
        for number in range(50):  # one after the other, however fast each worker is
            found = on_all(made, lambda one, n=number: one.gather("add", [one.rank, n]))
            assert found == [[[0, number], [1, number], [2, number]]] * 3
        big = "x" * 3_000_000
        assert on_all(made, lambda one: one.gather("big", big)) == [[big] * 3] * 3


def test_workers_at_different_places_are_named():
    with channels(3) as made:
        found = on_all(made, lambda one: one.gather("save" if one.rank == 1 else "train", 0))
    for message in found:
        assert "different things" in message
        # A worker does not wait for the third if two differ.
        assert "worker 1 (host1:2222): save" in message
        assert "(host0:2222): train" in message or "(host2:2222): train" in message


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda channel: channel.close(), "its process has ended; see its output"),
        (lose, "it was lost: its process was killed, or its host can't be reached"),
    ],
)
def test_a_worker_that_is_gone_is_not_waited_for(end, message):
    with channels(3, timeout=60.0) as made:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(made[rank].gather, "train", 0) for rank in (0, 1)]
            time.sleep(0.2)
            end(made[2])
            for rank, one in enumerate(waiting):
                with pytest.raises(WorkerError) as caught:
                    one.result(30)  # not after the 60 s of a worker that is silent
                assert str(caught.value) == (
                    f"Worker 2 (host2:2222): {message}. worker {rank} (host{rank}:2222) waited "
                    "for it at: train."
                )
        with pytest.raises(WorkerError, match="Worker 2"):  # nor later
            made[0].gather("evaluate", 0)


def test_its_own_error_says_more_than_its_end(monkeypatch):
    monkeypatch.setattr(control_channel, "_FAREWELL_SECONDS", 0.1)
    with channels(2) as made:
        made[1].tell("error", "ValueError: no such file")
        made[1].close()
        with pytest.raises(WorkerError, match=r"host1:2222\): it has failed with ValueError: no"):
            made[0].gather("train", 0)
        assert "it has failed with ValueError" in made[0].failure()


def test_errors_are_forgiven_once_all_go_on():
    with channels(2) as made:
        made[1].tell("error", "KeyboardInterrupt()")
        on_all(made, lambda one: one.gather("the end", 0))
        assert "KeyboardInterrupt" in made[0].failure()
        on_all(made, lambda one: one.gather("train again", 0, forget_errors=True))
        assert made[0].failure() == ""
        made[1].tell("error", "ValueError: mine")  # maybe before the first one goes on
        assert "ValueError" in made[0].failure(5.0)


def test_an_error_that_follows_from_another_one_is_left_out():
    with channels(3) as made:
        made[1].tell(
            "error", "WorkerError: Worker 2 (host2:2222): it has failed with OSError: full"
        )
        assert "Worker 1" in made[0].failure(5.0)
        made[2].tell("error", "OSError: full")
        on_all(made, lambda one: one.gather("the end", 0))
        assert made[0].failure() == "Worker 2 (host2:2222): it has failed with OSError: full"


def test_a_worker_that_has_failed_ends_after_the_others_or_after_a_while(monkeypatch):
    monkeypatch.setattr(control_channel, "_FAREWELL_SECONDS", 0.5)
    closed, seconds = [], {}
    with channels(3) as made:

        def close(rank):
            began = time.monotonic()
            made[rank].close()
            closed.append(rank)
            seconds[rank] = time.monotonic() - began

        made[0].tell("error", "ValueError: mine")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(close, [0, 1]))
        assert closed == [1, 0] and seconds[0] >= 0.5  # the third one still works
        made[2].close()


def test_the_wait_has_a_deadline():
    with channels(2, timeout=0.5) as made:
        with pytest.raises(WorkerError) as caught:
            made[0].gather("save a checkpoint", 0)
    assert str(caught.value) == (
        "worker 0 (host0:2222) has waited 0.5 s at: save a checkpoint. It waits for worker 1 "
        "(host1:2222). If a worker may take longer, set TFLOSS_WORKER_TIMEOUT=SECONDS."
    )


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[]\n", b'{"count": []}\n', b"[" * 9999 + b"\n", b'{"tell": 1}\n']
)
def test_garbage_ends_a_worker_and_not_the_reader(line):
    with channels(3) as made:
        made[1]._links.connections[0].outgoing.sendall(line)
        with pytest.raises(WorkerError, match="Worker 1 .*no worker of this version of tfloss"):
            made[0].gather("train", 0)
        heard = []
        made[0].listen("hello", lambda rank, text: heard.append((rank, text)))
        made[2].tell("hello", "there")
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard == [(2, "there")]


def test_who_listens_later_hears_of_the_lost():
    with channels(2) as made:
        lose(made[1])
        with pytest.raises(WorkerError):
            made[0].gather("train", 0)
        heard = []
        made[0].listen("lost", lambda rank, text: heard.append(rank))
        made[0].listen("ended", lambda rank, text: heard.append(-rank))
        assert heard == [1]


@pytest.mark.parametrize("text", ["0", "-1", "5m", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("TFLOSS_WORKER_TIMEOUT", text)
    with pytest.raises(ClusterError, match="TFLOSS_WORKER_TIMEOUT must be a positive number"):
        worker_timeout()
    monkeypatch.setenv("TFLOSS_WORKER_TIMEOUT", "30")
    assert worker_timeout() == 30.0


CODE = """
import os, sys, time
from tfloss.distribute.control_channel import ControlChannel
from tfloss.distribute.rendezvous import wait_for_workers
from tfloss.errors import WorkerError

rank, addresses = int(sys.argv[1]), sys.argv[2].split(",")
channel = ControlChannel(wait_for_workers(addresses, rank, 20.0), addresses, rank)
assert channel.gather("begin", rank) == [0, 1]
if rank == 1:
    if os.fork() == 0:  # as a data loader
        time.sleep(60)
        os._exit(0)
    print("ready", os.getpid(), flush=True)
    time.sleep(60)
try:
    channel.gather("next", 0)
except WorkerError as error:
    sys.exit(str(error))
"""


def test_a_killed_process_is_noticed_although_its_child_lives():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), ",".join(addresses)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        assert workers[1].stdout.readline().startswith("ready")
        workers[1].kill()
        assert workers[0].wait(30) == 1  # the child sleeps for longer
        assert f"Worker 1 ({addresses[1]}): it was lost" in workers[0].stderr.read()
    finally:
        for worker in workers:
            with_children = os.getpgid(worker.pid) if worker.poll() is None else worker.pid
            try:
                os.killpg(with_children, signal.SIGKILL)
            except ProcessLookupError:
                pass
            worker.communicate()
