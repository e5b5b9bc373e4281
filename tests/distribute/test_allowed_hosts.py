"""Where a worker listens, and whom it accepts."""

import pytest

from tfloss.distribute.allowed_hosts import AllowedHosts, host_of, listen_addresses, resolve

NAMES = {
    "a": {"10.0.0.1"},
    "b": {"10.0.0.2", "fd00::2"},
    "loop": {"127.0.1.1"},
    "localhost": {"127.0.0.1", "::1"},
}


def find(host):
    return NAMES.get(host, set())


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["a:1", "b:1"], ["10.0.0.1"]),
        (["b:1", "a:1"], ["10.0.0.2", "fd00::2"]),
        (["localhost:1", "localhost:2"], ["127.0.0.1", "::1"]),
        (["localhost:1", "loop:2"], ["127.0.0.1", "::1"]),
        # Debian lets a host resolve its own name to 127.0.1.1, where no other host reaches it.
        (["loop:1", "a:1"], []),
        (["loop:1", "unknown:1"], []),
        (["unknown:1", "a:1"], []),
    ],
)
def test_a_worker_listens_at_the_address_of_the_cluster(addresses, expected):
    assert listen_addresses(addresses, 0, find) == expected


@pytest.mark.parametrize(
    ("ip", "allowed"),
    [
        ("10.0.0.1", True),
        ("::ffff:10.0.0.1", True),  # as a socket for both protocols shows it
        ("fd00::2", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("10.0.0.3", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_hosts_of_the_cluster_are_accepted(ip, allowed):
    assert AllowedHosts(["a:1", "b:1"], find).allows(ip) is allowed


def test_a_name_that_appears_later_is_found(monkeypatch):
    """The name of a pod exists when the pod has started."""
    names, asked = {}, []

    def find(host):
        asked.append(host)
        return names.get(host, set())

    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    hosts = AllowedHosts(["late:1"], find)
    assert not hosts.allows("10.0.0.9")
    names["late"] = {"10.0.0.9"}
    assert not hosts.allows("10.0.0.9") and asked == ["late"]  # not for each connection
    now[0] = 2.0
    assert hosts.allows("10.0.0.9")
    assert hosts.allows("10.0.0.9") and not hosts.allows("10.0.0.8") and len(asked) == 2


def test_names_and_numbers():
    assert host_of("[fd00::2]:22") == "fd00::2"
    assert host_of("a:1") == "a"
    assert resolve("127.0.0.1") == {"127.0.0.1"}
    assert resolve("no-such-host.invalid") == set()
