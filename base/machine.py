"""By what a machine is told from another that has a copy of its files.

Three facts, each as a keyed hash: machine-id(5) asks that the ID itself does not leave the host, and the ID of one node
is not to be recognised in another cluster. A fact that this host does not have is empty, and tells nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import socket
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from base.files import read_text

_HARDWARE = ("sys/class/dmi/id/product_uuid", "sys/firmware/devicetree/base/serial-number")
_SIOCGIFADDR, _SIOCGIFHWADDR = 0x8915, 0x8927  # <linux/sockios.h>
_ARPHRD_ETHER = 1
_REQUEST = struct.Struct("16s24s")  # struct ifreq: the name, then a struct sockaddr
_MARK_LENGTH = 32
LINKS_MAX = 16
BOOTS_FILE = "boots"


class MachineFacts(NamedTuple):
    """
    Attributes:
        id: of /etc/machine-id; none where it is made anew at each boot, which systemd says by /run/machine-id.
        hardware: what the firmware calls this machine; hypervisors give a clone another one.
        links: MAC addresses of the interfaces that have an IPv4 address.
    """

    id: str = ""
    hardware: str = ""
    links: tuple[str, ...] = ()


def known_boots(path: Path) -> list[str]:
    """The lines of an agent's file of boots (``worker.agent.boots``), but for empty ones; none where there is no file.

    Raises:
        OSError: it cannot be read.
    """
    text = read_text(path)
    return [line for line in text.split("\n") if line] if text is not None else []


def this_machine(node_id: str, *, root: Path = Path("/")) -> MachineFacts:
    """The facts of this host, as node ``node_id`` of a cluster shows them. ``root``: of /etc, /run and /sys."""
    lasting = not (root / "run/machine-id").exists()
    machine_id = _content(root / "etc/machine-id") if lasting else b""
    hardware = next((found for name in _HARDWARE if (found := _content(root / name))), b"")
    links = tuple(sorted(_mark(node_id, address) for address in _mac_addresses())[:LINKS_MAX])
    return MachineFacts(_mark(node_id, machine_id), _mark(node_id, hardware), links)


def _mark(node_id: str, fact: bytes) -> str:
    return hmac.new(fact, node_id.encode(), hashlib.sha256).hexdigest()[:_MARK_LENGTH] if fact else ""


def _content(path: Path) -> bytes:
    try:
        found = path.read_bytes().strip(b"\0\n ")
    except OSError:
        return b""
    return b"" if found == b"uninitialized" else found


def _mac_addresses() -> set[bytes]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            names = [name for _, name in socket.if_nameindex() if _ask(asking, _SIOCGIFADDR, name)]
            answers = [_ask(asking, _SIOCGIFHWADDR, name) for name in names]
    except OSError:
        return set()
    ethernet = [answer[2:8] for answer in answers if answer[:2] == _ARPHRD_ETHER.to_bytes(2, sys.byteorder)]
    return {address for address in ethernet if any(address)}


def _ask(asking: socket.socket, question: int, name: str) -> bytes:
    """The struct sockaddr of the answer; empty when the interface has none."""
    try:
        answer: bytes = fcntl.ioctl(asking, question, _REQUEST.pack(name.encode(), b""))
    except OSError:
        return b""
    return answer[16:]
