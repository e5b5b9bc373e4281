"""How two workers of a cluster recognise each other on a new connection. Host code, no TensorFlow.

Each message is one line of JSON. The worker that connects is the *caller*:

1. The caller sends its rank, a digest of the list of workers, and a random number.
2. The other worker answers with the same of its own, and with a proof.
3. The caller checks the proof, and sends its own.

A proof is an HMAC over both hellos, with the secret of the cluster (TFLOSS_CLUSTER_SECRET) as its
key. So nobody without the secret passes, and no recorded proof serves again. Without a secret the
key is empty: the proof then shows only that both speak this protocol, and the rendezvous also
calls back (`tfloss.distribute.rendezvous`). The list of workers itself is never sent.
"""

import hashlib
import hmac
import json
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any, cast

VARIABLE = "TFLOSS_CLUSTER_SECRET"
_MAX_LINE_BYTES = 4096  # of a line of somebody who has not proved anything
_FIELDS = {"tfloss": str, "rank": int, "cluster": str, "workers": int, "incarnation": str}


class LineReader:
    """Reads lines from a socket. What is read beyond a line stays in `rest`.

    Args:
      sock: The socket. Its timeout counts for each read.

    Attributes:
      rest: The bytes that were received, but not returned.
    """

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self.rest = b""

    def line(self) -> bytes:
        """Returns the next line without its end; b"" at the end, or if the line is too long.

        Raises:
          OSError: The connection failed, or nothing came in time.
        """
        while b"\n" not in self.rest:
            received = self._socket.recv(_MAX_LINE_BYTES)
            self.rest += received
            if not received or (b"\n" not in self.rest and len(self.rest) > _MAX_LINE_BYTES):
                return b""
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def message(self) -> dict[str, Any]:
        """Returns the next line as a JSON object; {} for anything else."""
        try:
            found: Any = json.loads(self.line())
        except (ValueError, RecursionError):
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


class Identity:
    """What a worker says of itself, and how it checks what another says.

    Args:
      addresses: The addresses of all workers.
      rank: The index of this worker's address.
      secret: The secret of the cluster; "" for none.

    Attributes:
      incarnation: A random name of this process. A worker that is restarted has another one.
    """

    def __init__(self, addresses: Sequence[str], rank: int, secret: str = ""):
        self._addresses, self._rank = list(addresses), rank
        self._secret = secret.encode()
        self._cluster = hashlib.sha256(json.dumps(self._addresses).encode()).hexdigest()[:16]
        self.incarnation = secrets.token_hex(16)

    def call(
        self, sock: socket.socket, lines: LineReader, other: int, nonce: str
    ) -> tuple[dict[str, Any], str]:
        """Introduces this worker to the one that it has connected to.

        Args:
          sock: The connection.
          lines: Reads from it.
          other: The rank of the worker at that address.
          nonce: A random number for this connection.

        Returns:
          The hello of the other worker, and why it is not the expected one; "" if it is.
        """
        mine = self._hello(nonce)
        _send(sock, mine)
        theirs = lines.message()
        if problem := self.mismatch(theirs, other):
            return theirs, problem
        if not self._proves(theirs.pop("proof", None), "callee", mine, theirs):
            return theirs, f"it has another {VARIABLE}, or only one of the two has one"
        _send(sock, {"proof": self._proof("caller", mine, theirs)})
        return theirs, ""

    def answer(self, sock: socket.socket, lines: LineReader) -> dict[str, Any] | None:
        """Answers somebody who has connected.

        Args:
          sock: The connection.
          lines: Reads from it.

        Returns:
          The hello of the caller, with its `rank` and `nonce`. None if it is not another worker of
          this cluster.
        """
        theirs = lines.message()
        if not _is_hello(theirs):
            return None
        mine = self._hello(secrets.token_hex(16))
        # To a worker of another run, too, so that it can report it.
        _send(sock, mine | {"proof": self._proof("callee", theirs, mine)})
        other = theirs["rank"]
        if not 0 <= other < len(self._addresses) or other == self._rank:
            return None
        if self.mismatch(theirs, other):
            return None
        proof = lines.message().get("proof")
        return theirs if self._proves(proof, "caller", theirs, mine) else None

    def mismatch(self, theirs: Mapping[str, Any], expected: int) -> str:
        """Describes why a hello is not from the expected worker; "" if it is."""
        if not _is_hello(theirs):
            return "another program answers, not a worker of this version of tfloss"
        if theirs["cluster"] != self._cluster:
            return (
                f"it has another list of workers, with {theirs['workers']} entries. This worker "
                f"has {len(self._addresses)}: {','.join(self._addresses)}"
            )
        if theirs["rank"] != expected:
            return f"it reports that it is worker {theirs['rank']}"
        return ""

    def _hello(self, nonce: str) -> dict[str, Any]:
        return {
            "tfloss": "worker",
            "rank": self._rank,
            "cluster": self._cluster,
            "workers": len(self._addresses),
            "incarnation": self.incarnation,
            "nonce": nonce,
        }

    def _proof(self, role: str, caller: Mapping[str, Any], callee: Mapping[str, Any]) -> str:
        text = json.dumps([role, dict(caller), dict(callee)], sort_keys=True)
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def _proves(
        self, proof: Any, role: str, caller: Mapping[str, Any], callee: Mapping[str, Any]
    ) -> bool:
        expected = self._proof(role, caller, callee)
        return isinstance(proof, str) and hmac.compare_digest(proof.encode(), expected.encode())


def _send(sock: socket.socket, message: Mapping[str, Any]) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")


def _is_hello(message: Mapping[str, Any]) -> bool:
    return (
        message.get("tfloss") == "worker"
        and all(type(message.get(name)) is kind for name, kind in _FIELDS.items())
        and isinstance(message.get("nonce"), str)
    )
