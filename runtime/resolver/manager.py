"""The resolver's process as the node sees it: started when a container first needs it, adopted, told, started again.

The node keeps all that was told. A resolver that was killed is started at once and told everything; one that outlived the
last node is found by its socket and told what has changed since. What is told while there is none is answered by once there
is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from base.backoff import Backoff
from base.files import ensure_private_folder
from base.tasks import OwnedTasks
from base.version import VERSION
from runtime.errors import HostError
from runtime.resolver.kept import Kept
from runtime.resolver.messages import KEEPER, LOCK, PROCESS, SOCKET, Frames, Greeting, Noted, Telling, frame
from runtime.resolver.namespaces import Sockets
from runtime.resolver.port import Change, Directory, DropAsker, Everything, PutAsker

log = structlog.get_logger(__name__)

ANSWER_S_MAX = 10.0
"""So long a change may take; then the resolver is taken for hung and another one started."""
_START_S_MAX = 10.0
_GREETING_S_MAX = 2.0
_END_S_MAX = 2.0
_CONNECT_AGAIN_S = 0.005
_RESTART_S_MIN, _RESTART_S_MAX = 0.01, 5.0
_WELL_AFTER_S = 5.0
_READ_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("iII")


class ResolverProcess:
    """See ``port.Resolver``. Made on the event loop it is used on.

    Args:
        folder: for its socket and lock; short, on a tmpfs. It is made, for the daemon alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._directory = Directory()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, str]]] = {}
        self._link: _Link | None = None
        self._tasks = OwnedTasks()
        self._keeping: asyncio.Task[None] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = Kept(folder / KEEPER, lambda container_id: container_id in self._directory.askers)

    @property
    def pid(self) -> int | None:
        """Of the process that is told, if there is one."""
        return self._link.pid if self._link else None

    @property
    def sockets_kept(self) -> int:
        """Of how many containers the node has the sockets too: what these ask waits while no process runs."""
        return len(self._kept)

    async def tell(self, *changes: Change) -> None:
        """See ``Resolver``."""
        for change in changes:
            self._directory.apply(change)
            if isinstance(change, DropAsker):
                self._kept.drop(change.container_id)
        await self._say([*changes])

    async def replace(self, everything: Everything) -> None:
        """See ``Resolver``. One that outlived the last daemon is adopted even if nothing needs it now."""
        self._directory.replace(everything)
        self._kept.drop_others(self._directory.askers)
        if self._link is None and not self._directory.askers and self._keeping is None:
            self._link = await self._connect()
            if self._link is None:
                return
            self._keep_soon()
        await self._say([everything])

    async def close(self) -> None:
        """Let go of the process, which goes on; one that no container needs is ended."""
        link, pid = self._link, self.pid
        await self._tasks.close()
        self._keeping = None
        self._kept.close()
        for future in self._waiting.values():
            future.cancel()
        if link is not None:
            link.close()
        if pid is None and self._child is not None and self._child.poll() is None:
            pid = self._child.pid  # it was being started
        if pid is not None and not self._directory.askers:
            await _end(pid)
        if self._child is not None:
            self._child.poll()

    async def _say(self, changes: list[Change | Everything]) -> None:
        if self._link is None:
            if not self._directory.askers:
                return  # nobody asks: it is told with everything once somebody does
            self._keep_soon()
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        if self._link is not None:
            self._link.send(Telling(number, changes))
        wanted = {change.asker.container_id for change in changes if isinstance(change, PutAsker)}
        try:
            failures = await asyncio.wait_for(future, ANSWER_S_MAX)
        except TimeoutError:
            log.error("resolver.hung", pid=self.pid, waited_s=ANSWER_S_MAX)
            if self.pid is not None:
                _signal(self.pid, signal.SIGKILL)  # the end of its connection starts another
            raise HostError(f"the resolver of container names does not answer within {ANSWER_S_MAX:.0f} s") from None
        finally:
            self._waiting.pop(number, None)
        for container_id, reason in failures.items():
            if container_id in wanted:
                raise HostError(f"cannot serve names to container {container_id[:12]}: {reason}")
            log.warning("resolver.container_not_served", container_id=container_id, reason=reason)

    def _keep_soon(self) -> None:
        if self._keeping is None or self._keeping.done():
            self._keeping = self._tasks.spawn(self._keep(), name="resolver")

    async def _keep(self) -> None:
        """Have one and hear what it says, again and again."""
        backoff, loop = Backoff(_RESTART_S_MIN, _RESTART_S_MAX), asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                link = self._link or await self._connect() or await self._start()
            except (OSError, HostError) as error:
                log.error("resolver.not_started", error=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            self._link = link
            self._kept.connect()
            first = next(self._numbers)
            link.send(Telling(first, [self._directory.everything()]))
            try:
                await self._listen(link, first)
            finally:
                self._link = None
                link.close()
            if self._child is not None:
                await asyncio.to_thread(_reap, self._child)
                self._child = None
            if loop.time() - began_s > _WELL_AFTER_S:
                backoff.reset()
            delay_s = backoff.next_s()
            log.warning("resolver.exited", pid=link.pid, restart_delay_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _listen(self, link: _Link, first: int) -> None:
        """Until it has gone. Before its answer to everything nothing counts as answered by, and with it all that another
        one was told."""
        early: list[Noted] | None = []
        async for noted in link.noted():
            if early is None:
                self._settle(noted)
                continue
            early.append(noted)
            if noted.number == first:
                for number in [each for each in self._waiting if each < first]:
                    self._settle(Noted(number, noted.failures))
                for each in early:
                    self._settle(each)
                early = None

    def _settle(self, noted: Noted) -> None:
        future = self._waiting.get(noted.number)
        if future is not None and not future.done():
            future.set_result(noted.failures)
        elif future is None:
            for container_id, reason in noted.failures.items():
                log.warning("resolver.container_not_served", container_id=container_id, reason=reason)

    async def _connect(self) -> _Link | None:
        """The one that runs; None when there is none, or it was another version's and has been ended."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._folder / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        link = _Link(reader, writer)
        try:
            greeting = await asyncio.wait_for(link.greeted(), _GREETING_S_MAX)
        except (TimeoutError, OSError, ValueError, msgspec.DecodeError, asyncio.IncompleteReadError):
            greeting = None
        if greeting is not None and greeting.version == VERSION:
            log.info("resolver.adopted" if self._child is None else "resolver.started", pid=link.pid)
            return link
        log.warning("resolver.replaced", pid=link.pid, version=greeting.version if greeting else "none")
        link.close()
        await _end(link.pid)
        return None

    async def _start(self) -> _Link:
        """Raises HostError, OSError."""
        await asyncio.to_thread(ensure_private_folder, self._folder)
        command = [sys.executable, "-P", "-m", PROCESS, str(self._folder)]
        self._child = child = await asyncio.to_thread(_spawn, command, self._kept.copies())
        deadline_s = asyncio.get_running_loop().time() + _START_S_MAX
        while asyncio.get_running_loop().time() < deadline_s:
            link = await self._connect()
            if link is not None:
                return link
            if (status := child.poll()) is not None:
                holder = self._folder / LOCK
                raise HostError(f"the resolver ended with status {status}; {holder} has the PID of another one, if any")
            await asyncio.sleep(_CONNECT_AGAIN_S)
        child.kill()
        raise HostError(f"the resolver did not come up within {_START_S_MAX:.0f} s")


class _Link:
    """A connection to a resolver."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._frames = reader, writer, Frames()
        peer: socket.socket = writer.get_extra_info("socket")
        self.pid: int = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[
            0
        ]

    def send(self, message: Telling) -> None:
        """What is lost with the connection is told anew by the next one."""
        self._writer.write(frame(message))

    async def greeted(self) -> Greeting:
        """Its first word. Raises what reading and decoding raise."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        return msgspec.msgpack.decode(await self._reader.readexactly(min(size, _READ_BYTES)), type=Greeting)

    async def noted(self) -> AsyncIterator[Noted]:
        """What it says from then on, until it has gone."""
        with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):
            while data := await self._reader.read(_READ_BYTES):
                for each in self._frames.feed(data):
                    yield msgspec.msgpack.decode(each, type=Noted)

    def close(self) -> None:
        """Idempotent."""
        self._writer.close()


def _spawn(command: Sequence[str], kept: Mapping[str, Sockets]) -> subprocess.Popen[bytes]:
    """``kept`` are its to close."""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor for each in kept.values() for descriptor in (each.udp, each.tcp)],
            start_new_session=True,
        )
    finally:
        for each in kept.values():
            each.close()
    assert child.stdin is not None
    with contextlib.suppress(OSError), child.stdin:
        child.stdin.write(msgspec.json.encode(kept))
    return child


def _signal(pid: int, number: signal.Signals) -> None:
    """By a descriptor: the peer of a connection that stands is no other process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _end(pid: int) -> None:
    """Ask it to end, and wait; kill it after 2 s."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), _END_S_MAX)
                return
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _reap(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_END_S_MAX)
