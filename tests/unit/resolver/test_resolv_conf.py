"""/etc/resolv.conf of containers. The expected files are those of dockerd 28.5, run on these files of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.resolver import resolv_conf as module
from runtime.resolver.port import Upstream
from runtime.resolver.resolv_conf import HostFile, Mode, host_file, resolv_conf

FULL = """\
nameserver 10.0.0.1
nameserver fd00::1
nameserver 127.0.0.53
search a.example b.example
options timeout:2 attempts:3
"""
ODD = """\
# x
nameserver 127.0.0.1
nameserver ::1
domain d.example
sortlist 1.2.3.4
options ndots:4
options edns0
nameserver bad
"""


CASES = [
    pytest.param(
        FULL,
        "legacy",
        (),
        (),
        (),
        """\
nameserver 10.0.0.1
search a.example b.example
options timeout:2 attempts:3

# Based on host file: '/etc/resolv.conf' (legacy)
# Overrides: []
""",
        id="A ",
    ),
    pytest.param(
        FULL,
        "internal",
        (),
        (),
        (),
        """\
nameserver 127.0.0.11
search a.example b.example
options timeout:2 attempts:3 ndots:0

# Based on host file: '/etc/resolv.conf' (internal resolver)
# ExtServers: [host(10.0.0.1) host(fd00::1) host(127.0.0.53)]
# Overrides: []
# Option ndots from: internal
""",
        id="A --network u",
    ),
    pytest.param(
        FULL,
        "host",
        (),
        (),
        (),
        """\
nameserver 10.0.0.1
nameserver fd00::1
nameserver 127.0.0.53
search a.example b.example
options timeout:2 attempts:3

# Based on host file: '/etc/resolv.conf'
# Overrides: []
""",
        id="A --network host",
    ),
    pytest.param(
        FULL,
        "internal",
        ("9.9.9.9",),
        ("ex.org",),
        ("ndots:3", "timeout:1"),
        """\
nameserver 127.0.0.11
search ex.org
options ndots:3 timeout:1

# Based on host file: '/etc/resolv.conf' (internal resolver)
# ExtServers: [9.9.9.9]
# Overrides: [nameservers search options]
# Option ndots from: override
""",
        id="A --network u --dns 9.9.9.9 --dns-search ex.org --dns-option ndots:3 --dns-option timeout:1",
    ),
    pytest.param(
        FULL,
        "legacy",
        ("9.9.9.9", "127.0.0.1"),
        (".",),
        ("rotate",),
        """\
nameserver 9.9.9.9
nameserver 127.0.0.1
options rotate

# Based on host file: '/etc/resolv.conf' (legacy)
# Overrides: [nameservers search options]
""",
        id="A --dns 9.9.9.9 --dns 127.0.0.1 --dns-search . --dns-option rotate",
    ),
    pytest.param(
        FULL,
        "internal",
        (),
        (".",),
        ("ndots:x", "edns0"),
        """\
nameserver 127.0.0.11
options edns0 ndots:0

# Based on host file: '/etc/resolv.conf' (internal resolver)
# ExtServers: [host(10.0.0.1) host(fd00::1) host(127.0.0.53)]
# Overrides: [search options]
# Option ndots from: internal
""",
        id="A --network u --dns-option ndots:x --dns-option edns0 --dns-search .",
    ),
    pytest.param(
        FULL,
        "host",
        ("9.9.9.9",),
        (),
        (),
        """\
nameserver 9.9.9.9
search a.example b.example
options timeout:2 attempts:3

# Based on host file: '/etc/resolv.conf'
# Overrides: [nameservers]
""",
        id="A --network host --dns 9.9.9.9",
    ),
    pytest.param(
        ODD,
        "legacy",
        (),
        (),
        (),
        """\
nameserver 8.8.8.8
nameserver 8.8.4.4
search d.example
options ndots:4 edns0
sortlist 1.2.3.4

# Based on host file: '/etc/resolv.conf' (legacy)
# Used default nameservers.
# Invalid nameservers: [bad]
# Overrides: []
# Option ndots from: host
""",
        id="B ",
    ),
    pytest.param(
        ODD,
        "internal",
        (),
        (),
        (),
        """\
nameserver 127.0.0.11
search d.example
options ndots:4 edns0
sortlist 1.2.3.4

# Based on host file: '/etc/resolv.conf' (internal resolver)
# ExtServers: [host(127.0.0.1) host(::1)]
# Invalid nameservers: [bad]
# Overrides: []
# Option ndots from: host
""",
        id="B --network u",
    ),
    pytest.param(
        ODD,
        "host",
        (),
        (),
        (),
        """\
nameserver 127.0.0.1
nameserver ::1
search d.example
options ndots:4 edns0
sortlist 1.2.3.4

# Based on host file: '/etc/resolv.conf'
# Invalid nameservers: [bad]
# Overrides: []
# Option ndots from: host
""",
        id="B --network host",
    ),
    pytest.param(
        "",
        "legacy",
        (),
        (),
        (),
        """\
nameserver 8.8.8.8
nameserver 8.8.4.4

# Based on host file: '/etc/resolv.conf' (legacy)
# Used default nameservers.
# Overrides: []
""",
        id="C ",
    ),
    pytest.param(
        "",
        "internal",
        (),
        (),
        (),
        """\
nameserver 127.0.0.11
options ndots:0

# Based on host file: '/etc/resolv.conf' (internal resolver)
# NO EXTERNAL NAMESERVERS DEFINED
# Overrides: []
# Option ndots from: internal
""",
        id="C --network u",
    ),
]


@pytest.mark.parametrize(("text", "mode", "servers", "search", "options", "expected"), CASES)
def test_the_file_is_dockerds(
    text: str, mode: Mode, servers: tuple[str, ...], search: tuple[str, ...], options: tuple[str, ...], expected: str
) -> None:
    host = HostFile("/etc/resolv.conf", text)
    found = resolv_conf(mode, host, servers=servers, search=search, options=options).text
    header, _, rest = found.partition("\n\n")
    assert all(line.startswith("#") for line in header.splitlines())
    assert rest == expected


def test_servers_of_the_host_are_asked_from_the_host_and_wished_ones_from_the_container() -> None:
    host = HostFile("/etc/resolv.conf", FULL)
    found = resolv_conf("internal", host)
    assert found.upstreams == tuple(Upstream(each, from_host=True) for each in ("10.0.0.1", "fd00::1", "127.0.0.53"))
    assert found.options == ("timeout:2", "attempts:3")
    found = resolv_conf("internal", host, servers=["9.9.9.9"], options=["ndots:1"])
    assert (found.upstreams, found.options) == ((Upstream("9.9.9.9"),), ("ndots:1",))
    assert not resolv_conf("legacy", host).upstreams


def test_servers_with_ipv6_addresses_are_of_use_where_the_bridge_has_ipv6() -> None:
    found = resolv_conf("legacy", HostFile("/etc/resolv.conf", FULL), ipv6=True).text
    assert "nameserver 10.0.0.1\nnameserver fd00::1\nsearch" in found
    found = resolv_conf("legacy", HostFile("/etc/resolv.conf", ""), ipv6=True).text
    assert "nameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\n" in found


def test_behind_resolved_the_file_with_the_real_servers_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, real = tmp_path / "resolv.conf", tmp_path / "real.conf"
    monkeypatch.setattr(module, "_HOST_FILE", stub)
    monkeypatch.setattr(module, "_RESOLVED_FILE", real)
    assert host_file() == HostFile(str(stub), "")
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    real.write_text("nameserver 10.0.0.1\n")
    assert host_file() == HostFile(str(real), "nameserver 10.0.0.1\n")
    stub.write_text("nameserver 127.0.0.53\nnameserver 10.0.0.2\n")
    assert host_file().path == str(stub)
