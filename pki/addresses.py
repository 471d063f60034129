"""``HOST:PORT`` as people write it."""

from __future__ import annotations

import ipaddress

DEFAULT_PORT = 2377
_PORT_MAX = 65535


class AddressError(ValueError):
    """What was written names no address; the message is for whoever wrote it."""


def split_host_port(text: str, default_port: int = DEFAULT_PORT, *, empty_host: bool = False) -> tuple[str, int]:
    """Host and port of ``HOST``, ``HOST:PORT``, ``[V6]:PORT``, ``[V6]`` or a bare IPv6 address.

    Args:
        default_port: where none is written.
        empty_host: ``""`` and ``:PORT`` are addresses too, with the host ``""``.

    Raises:
        AddressError: no host, a port that is none (1 to 65535, ASCII digits), brackets or colons around no IPv6 address.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":") or not _is_ipv6(host):
            raise AddressError(f"invalid address {text!r}: not [IPv6 address]:port")
    elif text.count(":") > 1:
        host, colon, port = text, "", ""
        if not _is_ipv6(host):
            raise AddressError(f"invalid address {text!r}: too many colons")
    else:
        host, colon, port = text.partition(":")
    if not host and not empty_host:
        raise AddressError(f"invalid address {text!r}: no host")
    if not colon:
        return host, default_port
    # int() and isdecimal() take the digits of every script; the length bounds what int() has to read.
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= _PORT_MAX):
        raise AddressError(f"invalid address {text!r}: invalid port")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """What ``split_host_port`` splits; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
