"""Who may speak over TCP: tools, not web pages.

A loopback port is open to every page in a browser of this host. A page can name it by an address (cross-site requests: a
POST without a body or with text needs no preflight), or by a name of its own that it then leads to 127.0.0.1 (DNS
rebinding: same-origin for the browser, so that it reads the answers too). Two rules, for every method and whatever the
body, since a list of harmless requests would have to be kept true:

- the request is made to a loopback address, to ``localhost``, or to a name that the daemon was told to listen on;
- it carries none of the marks by which browsers tell where a request comes from. No tool sends them. Even our own origin
  is refused: we serve no pages, and what a container wrote to its log is not to run as one.

Unix sockets are not asked: browsers cannot open them, and what proxies in front of them pass on is their affair.

Source: RFC 9110, section 7.4; RFC 6454, section 7.3; W3C Fetch Metadata, section 2.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from aiohttp import hdrs, web

from api.errors import ForbiddenError

LOOPBACK_NAME = "localhost"
MARKS = (hdrs.ORIGIN, hdrs.REFERER, "Sec-Fetch-Site")
"""Origin comes with every cross-origin POST, fetch and WebSocket; Sec-Fetch-Site with images, links and frames as well;
Referer from browsers older than that one."""

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_NAME_LENGTH_SHOWN = 100


def names_of(hosts: Iterable[str]) -> frozenset[str]:
    """The names in ``tcp://name:port`` URLs, in lower case."""
    addresses = (host.removeprefix("tcp://") for host in hosts if host.startswith("tcp://"))
    return frozenset(name for address in addresses if (name := _name(address)))


def check(request: web.Request, names: Collection[str]) -> None:
    """Refuse what a web page may have sent; ``names`` are those the daemon listens on (``names_of``).

    Raises: ForbiddenError.
    """
    if isinstance(request.get_extra_info("sockname"), str):  # a unix socket; of TCP it is a tuple
        return
    for mark in MARKS:
        # "none" is what the user typed into the address bar: no page knows of it.
        if request.headers.get(mark, "none") != "none":
            raise ForbiddenError(f"web pages may not use this API, and the request has a {mark} header")
    # An absolute target overrides the header (RFC 9112, section 3.2.2): then both must be ours.
    for authority in {*request.headers.getall(hdrs.HOST, [""]), request.host}:
        if not _is_ours(_name(authority), names):
            shown = authority[:_NAME_LENGTH_SHOWN]
            raise ForbiddenError(
                f"the request is made to {shown!r}: over TCP this API answers to localhost, to loopback addresses and "
                "to the names that swarmd was given with --host"
            )


def _name(authority: str) -> str:
    """Host of ``host[:port]`` in lower case, an IPv6 address without brackets; "" for what is no authority."""
    found = _AUTHORITY.fullmatch(authority)
    return (found[1] or found[2]).lower() if found else ""


def _is_ours(name: str, names: Collection[str]) -> bool:
    if name == LOOPBACK_NAME or name in names:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
