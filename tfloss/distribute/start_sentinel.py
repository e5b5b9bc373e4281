"""Ends a worker that TensorFlow is connecting, if another one dies. Host code, no TensorFlow.

While TensorFlow connects the workers, it holds the lock of the Python interpreter. So no thread of
this process can notice that a worker is gone, and TensorFlow itself waits for it. A small process
watches the connections in the meantime.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence

from tfloss.distribute.rendezvous import Connections

# It only looks whether the other end is closed, and which error the worker has reported before. It
# leaves all messages to the control channel.
_SCRIPT = """
import json, os, select, signal, socket, sys
parent, names = int(sys.argv[1]), {int(fd): name for fd, name in json.loads(sys.argv[2]).items()}

def error_of(fd):
    try:
        lines = socket.socket(fileno=fd).recv(2**20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        for message in map(json.loads, lines.split(b"\\n")[:-1]):
            if message.get("tell") == "error":
                return f"{names[fd]}: it has failed with {message['text']}"
    except Exception:
        pass

poll = select.poll()
hangup = getattr(select, "POLLRDHUP", select.POLLHUP)
for fd in (*names, 0):
    poll.register(fd, hangup)
closed = [fd for fd, event in poll.poll()]
if 0 not in closed:
    errors = sorted(filter(None, map(error_of, names)))
    what = "; ".join(errors) or "lost " + ", ".join(sorted(names[fd] for fd in closed))
    text = f"tfloss: {what} while TensorFlow connected the workers; this worker ends, too.\\n"
    os.write(2, text.encode())
    os.kill(parent, signal.SIGKILL)
"""


@contextlib.contextmanager
def ended_with_any(
    connections: Mapping[int, Connections], addresses: Sequence[str]
) -> Generator[None]:
    """Inside the `with`, this process is killed if another worker ends.

    A message on standard error names the worker. Nothing less than SIGKILL ends a process while
    native code holds the lock of the interpreter.

    Args:
      connections: The connections to each other worker, by rank.
      addresses: The addresses of all workers.
    """
    names = {
        pair.incoming.fileno(): f"worker {rank} ({addresses[rank]})"
        for rank, pair in connections.items()
    }
    if not names:
        yield
        return
    sentinel = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SCRIPT, str(os.getpid()), json.dumps(names)],
        stdin=subprocess.PIPE,  # it ends with this process
        pass_fds=list(names),
    )
    try:
        yield
    finally:
        sentinel.kill()
        sentinel.communicate()
