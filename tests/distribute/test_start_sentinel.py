"""A worker whose interpreter is blocked ends with the others."""

import signal
import socket
import subprocess
import sys
import time

CODE = """
import ctypes, socket, sys
from tfloss.distribute.rendezvous import Connections
from tfloss.distribute.start_sentinel import ended_with_any

mine = socket.socket(fileno=int(sys.argv[1]))
with ended_with_any({1: Connections(mine, mine)}, ["a:1", "b:2"]):
    print("blocks", flush=True)
    ctypes.PyDLL(None).sleep(int(sys.argv[2]))  # as TensorFlow, it holds the interpreter's lock
print("goes on", flush=True)
"""


def start(seconds):
    mine, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(mine.fileno()), str(seconds)],
        pass_fds=[mine.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    mine.close()
    assert process.stdout.readline() == "blocks\n"
    return process, theirs


def test_a_blocked_worker_ends_if_another_one_dies():
    process, theirs = start(60)
    time.sleep(0.5)
    assert process.poll() is None
    theirs.close()
    assert process.wait(30) == -signal.SIGKILL  # it would block for 60 s
    assert process.stderr.read() == (
        "tfloss: lost worker 1 (b:2) while TensorFlow connected the workers; this worker ends, "
        "too.\n"
    )


def test_a_worker_goes_on_if_all_live():
    process, theirs = start(1)
    with theirs:
        theirs.sendall(b"an early message")  # is left for the control channel
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "goes on\n", "")


def test_the_error_of_the_worker_is_named():
    process, theirs = start(60)
    theirs.sendall(b'{"tell": "stacks", "text": ""}\n{"tell": "error", "text": "OSError: full"}\n')
    theirs.close()
    assert process.wait(30) == -signal.SIGKILL
    assert process.stderr.read().startswith(
        "tfloss: worker 1 (b:2): it has failed with OSError: full while TensorFlow connected"
    )
