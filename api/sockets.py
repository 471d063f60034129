"""The sockets that the API listens on: unix sockets for who may manage the host, loopback TCP for tools.

Source: moby ``daemon/listeners`` and docker/go-connections ``sockets``.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
from pathlib import Path

import msgspec
import structlog

from base.files import make_public_folder
from base.numbers import natural

log = structlog.get_logger(__name__)

BACKLOG = 1024
SOCKET_MODE = 0o660
SOCKET_GROUP = "docker"
PROBE_TIMEOUT_S = 2.0
UNIX_PATH_BYTES_MAX = 107


class ListenError(Exception):
    """The API cannot listen where it was told to; the message names the host URL and the reason."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host


class Listener(msgspec.Struct, frozen=True):
    """A socket that listens, and for a unix socket the file to remove at the end."""

    host: str
    sock: socket.socket
    path: Path | None = None
    inode: int = 0

    def close(self) -> None:
        """Stop listening and remove the socket file unless somebody put another in its place. Idempotent."""
        self.sock.close()
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self.inode:
                    self.path.unlink()


def listen(host: str) -> list[Listener]:
    """Listen on ``unix:///path`` or ``tcp://host:port``; a name may stand for several addresses.

    Raises: ListenError.
    """
    scheme, separator, rest = host.partition("://")
    try:
        if separator and scheme == "unix":
            return [_listen_unix(host, Path(rest))]
        if separator and scheme == "tcp":
            return _listen_tcp(host, rest)
    except OSError as error:
        raise ListenError(host, error.strerror or str(error)) from error
    raise ListenError(host, "want unix:///path or tcp://host:port")


def _listen_unix(host: str, path: Path) -> Listener:
    if not path.is_absolute():
        raise ListenError(host, "a unix socket needs an absolute path")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ListenError(host, f"the path is longer than the {UNIX_PATH_BYTES_MAX} bytes that the kernel allows")
    make_public_folder(path.parent)
    _clear_stale(host, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        # Nobody can connect before listen(): no window in which the mode is that of the umask.
        path.chmod(SOCKET_MODE)
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(SOCKET_GROUP).gr_gid)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return Listener(host, sock, path, path.stat().st_ino)
    except BaseException:
        sock.close()
        raise


def _clear_stale(host: str, path: Path) -> None:
    """Remove what a dead daemon left; refuse where a living one answers or the file is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(host, "the file exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            log.info("socket.replaced", path=str(path))
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT):
                raise
    raise ListenError(host, "another daemon answers on this socket")


def _listen_tcp(host: str, address: str) -> list[Listener]:
    name, _, port_text = address.rpartition(":")
    port = natural(port_text, largest=65535)
    if not name or port is None:
        raise ListenError(host, "want tcp://host:port")
    found = socket.getaddrinfo(name.strip("[]"), port, type=socket.SOCK_STREAM)
    addresses = {(family, str(sockaddr[0]), port) for family, _, _, _, sockaddr in found}
    if outside := [ip for _, ip, _ in addresses if not ipaddress.ip_address(ip).is_loopback]:
        raise ListenError(
            host,
            f"{', '.join(sorted(outside))} is no loopback address, and without TLS whoever reaches the port owns "
            "the host; use 127.0.0.1 or a unix socket (docker -H ssh://... reaches it from afar)",
        )
    log.warning("tcp.unprotected", host=host, reason="any local user can manage this host through it")
    with contextlib.ExitStack() as opened:
        listeners = []
        for family, ip, port in sorted(addresses):
            listener = Listener(host, socket.create_server((ip, port), family=family, backlog=BACKLOG))
            opened.callback(listener.close)
            listener.sock.setblocking(False)
            listeners.append(listener)
        opened.pop_all()
        return listeners
