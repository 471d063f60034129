"""The ruleset of the bridge network as text: a pure function of what is published."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec


class PublishedPort(msgspec.Struct, frozen=True, order=True):
    """``host_ip:host_port`` leads to ``container_ip:container_port``; ``protocol`` is tcp, udp or sctp.

    ``host_ip`` "0.0.0.0" means each address of the host.
    """

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int


TABLE_PREFIX = "engine-"


def table_name(bridge: str) -> str:
    """One table a bridge."""
    return f"{TABLE_PREFIX}{bridge}"


def ruleset(bridge: str, subnet: ipaddress.IPv4Network, ports: Iterable[PublishedPort]) -> str:
    """Commands that put the whole table in place, whatever was there before, in one transaction.

    - What leaves the subnet through another device takes the host's address.
    - Published ports lead to their container, for packets from outside, from the host itself (loopback included:
      hence the masquerade of 127/8 and of a container that calls its own published port).
    - ``route_localnet``, which loopback publishing needs, must not let neighbours and containers reach the host's 127/8, nor
      seem to come from there: it lets such sources in as well.
    - Forwarding, which all of it needs, must not let neighbours reach the containers themselves, by a route to the subnet:
      only published ports and answers, whatever others accept.
    """
    table = f"ip {table_name(bridge)}"
    publish = "\n".join(_publish(port) for port in sorted(ports))
    return f"""add table {table}
delete table {table}
table {table} {{
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip saddr 127.0.0.0/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname != "{bridge}" accept
    iifname "{bridge}" accept
    ct state established,related accept
    ct status dnat accept
    drop
  }}
  chain publish {{
{publish}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{bridge}" masquerade
    oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
    oifname "{bridge}" ip saddr {subnet} ct status dnat masquerade
  }}
}}
"""


def _publish(port: PublishedPort) -> str:
    address = "" if port.host_ip in ("", "0.0.0.0") else f"ip daddr {port.host_ip} "
    return f"    {address}{port.protocol} dport {port.host_port} dnat to {port.container_ip}:{port.container_port}"
