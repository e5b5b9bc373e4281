"""Where a worker listens, and whose connections it accepts. Host code, no TensorFlow.

A worker listens at the address that the cluster names for it, not on all interfaces. It ignores
connections from hosts that are not in the cluster.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Sequence

_RETRY_SECONDS = 1.0  # before a name that could not be resolved is looked up again

_Resolve = Callable[[str], "set[str]"]


def host_of(address: str) -> str:
    """Returns the host of an address `host:port`."""
    return address.rpartition(":")[0].strip("[]")


def resolve(host: str) -> set[str]:
    """Returns the IP addresses of a host; none if its name can't be resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {_plain(str(info[4][0])) for info in found}


def listen_addresses(addresses: Sequence[str], rank: int, find: _Resolve = resolve) -> list[str]:
    """Returns the IP addresses to listen on; none means all interfaces.

    Some systems resolve a host's own name to an address that only the host itself can reach. Then
    the other hosts could not connect, so the worker listens on all interfaces.

    Args:
      addresses: The addresses of all workers.
      rank: The index of this worker's address.
      find: Returns the IP addresses of a host.
    """
    mine = find(host_of(addresses[rank]))
    outside = {one for one in mine if not ipaddress.ip_address(one).is_loopback}
    if outside:
        return sorted(outside)
    names = {host_of(one) for one in addresses} - {host_of(addresses[rank])}
    alone = all(_only_loopback(find(name)) for name in names)
    return sorted(mine) if alone else []


class AllowedHosts:
    """The IP addresses of the hosts of a cluster.

    Args:
      addresses: The addresses of all workers.
      find: Returns the IP addresses of a host.
    """

    def __init__(self, addresses: Iterable[str], find: _Resolve = resolve):
        self._find = find
        self._missing = {host_of(one) for one in addresses}
        self._found: set[str] = set()
        self._tried = -float("inf")

    def allows(self, ip: str) -> bool:
        """Returns whether a connection may come from a worker.

        Args:
          ip: The IP address that it comes from.
        """
        ip = _plain(ip)
        if ipaddress.ip_address(ip).is_loopback:  # this host is in the cluster
            return True
        if ip not in self._found and self._missing:
            now = time.monotonic()
            if now - self._tried >= _RETRY_SECONDS:
                self._tried = now
                for host in sorted(self._missing):
                    if found := self._find(host):
                        self._found |= found
                        self._missing.discard(host)
        return ip in self._found


def _only_loopback(found: set[str]) -> bool:
    return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)


def _plain(ip: str) -> str:
    """An IPv4 address as such where IPv6 wraps it, and without the name of an interface."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
