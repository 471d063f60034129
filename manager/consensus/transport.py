"""Raft's links: one TLS 1.3 stream per pair of managers, on the raft thread's loop.

The listener (port 2377, shared with the join protocol) is not ours: it hands streams that finished their
handshake with ALPN ``swarm-raft/1`` to ``Links.accept`` together with the identity in the certificate.

Both sides dial, so that one correct address is enough. When a pair ends up with two streams, the one dialled
by the member with the lower ID stays; both sides decide alike, so this settles after one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks
from manager.consensus import wire
from manager.consensus.configuration import Configuration
from manager.consensus.port import ConsensusError, NodeID
from manager.consensus.settings import Timing
from pki.addresses import split_host_port

log = structlog.get_logger(__name__)

RAFT_ALPN = "swarm-raft/1"
READ_SIZE_BYTES = 256 * 1024
WINDOW_SIZE_BYTES = 1024 * 1024
"""No more is queued for a peer than this (and one batch), however far behind it is."""
OUTPUT_SIZE_BYTES_MAX = WINDOW_SIZE_BYTES + wire.FRAME_SIZE_BYTES_MAX + 1024 * 1024
"""Answers wait for no room: who asks and asks and reads none of them is cut off."""

MESSAGES_A_TURN_MAX = 512
"""Of one peer, before the others, and the clock, have their turn."""

DIAL_TIMEOUT_S = 5.0
DIAL_DELAY_S_MIN, DIAL_DELAY_S_MAX = 0.05, 1.0
CLOSE_TIMEOUT_S = 0.5


class PeerRefusedError(ConsensusError):
    """The other end is not the manager it should be."""


@dataclass(slots=True, eq=False)
class _Connection:
    peer: NodeID
    writer: asyncio.StreamWriter
    dialled_by: NodeID
    instance: str
    is_copy: bool
    heard_s: float
    sent_s: float
    frames: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0


@dataclass(slots=True)
class _Dialler:
    address: str
    task: asyncio.Task[None] | None = None


class Links:
    """Implements ``adapter.Link`` with sockets.

    Args:
        node_id, address: of this member; the address is told to peers.
        group_id: what this member's configuration says now.
        client_ssl: called for every dial, so that a renewed certificate is used; ALPN ``swarm-raft/1``.
        peer_identity: the node ID in the certificate of a finished handshake; raises if the peer is not a
            manager of this cluster.
        superseded_by: the group that was forced from this member's, as it knew at the start.
        instance, claim: of this process, told with each Hello (see ``RaftConfig``).
        why_copy: why who makes such a claim is not the member of that ID, "" if it may be.
        has_leader: whether the group can do without a member that may be a copy.
        on_superseded: a peer belongs to, or knows of, a group that was forced from this member's; told once.
        on_message: a message of a peer; may raise ProtocolError to close the connection.
        on_input: called after a batch of messages or a change of connections.
    """

    def __init__(
        self,
        *,
        node_id: NodeID,
        address: str,
        timing: Timing,
        client_ssl: Callable[[], ssl.SSLContext],
        peer_identity: Callable[[ssl.SSLObject], NodeID],
        on_message: Callable[[NodeID, wire.Message], None],
        on_connected: Callable[[NodeID], None],
        on_disconnected: Callable[[NodeID], None],
        on_input: Callable[[], None],
        on_address: Callable[[NodeID, str], None],
        on_superseded: Callable[[str], None],
        superseded_by: str,
        instance: str,
        claim: Callable[[], bytes],
        why_copy: Callable[[NodeID, bytes], str],
        has_leader: Callable[[], bool],
    ) -> None:
        self._node_id, self._address, self._timing = node_id, address, timing
        self._client_ssl, self._peer_identity = client_ssl, peer_identity
        self._on_message, self._on_input, self._on_address = on_message, on_input, on_address
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._on_superseded, self._superseded_by = on_superseded, superseded_by
        self._instance, self._claim, self._why_copy, self._has_leader = instance, claim, why_copy, has_leader
        self._connections: dict[NodeID, _Connection] = {}
        self._diallers: dict[NodeID, _Dialler] = {}
        self._seen_at: dict[NodeID, str] = {}
        self._configuration = Configuration("", ())
        self._pending: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._serving: set[asyncio.StreamWriter] = set()
        self._refused: dict[NodeID, str] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = OwnedTasks()
        self._tasks.spawn(self._keep_alive(), name="raft-links-keeper")

    # adapter.Link

    def send(self, peer: NodeID, message: wire.Message) -> None:
        connection = self._connections.get(peer)
        if connection is None:
            return
        frame = wire.encode_frame(message)
        connection.frames.append(frame)
        connection.waiting_bytes += len(frame)
        self._pending.add(connection)

    def has_room(self, peer: NodeID) -> bool:
        connection = self._connections.get(peer)
        if connection is None:
            return False
        queued = connection.writer.transport.get_write_buffer_size()
        return queued + connection.waiting_bytes < WINDOW_SIZE_BYTES

    def configure(self, configuration: Configuration, leader_id: NodeID | None) -> None:
        self._configuration = configuration
        for member in configuration.members:
            if member.node_id != self._node_id:
                self._dial(member.node_id, self._seen_at.get(member.node_id, member.address))
        for node_id in [n for n in self._diallers if n != leader_id and configuration.find(n) is None]:
            task = self._diallers.pop(node_id).task
            if task is not None:
                task.cancel()

    def instances(self) -> dict[NodeID, str]:
        """The process at the other end of each stream."""
        return {peer: connection.instance for peer, connection in self._connections.items()}

    def recheck(self, node_id: NodeID) -> None:
        """End the stream with a peer if its certificate opens none any more.

        Not without a look: a member that lags, or is sent the history, learns of a demotion of long ago from the very
        node that was demoted, and promoted again.
        """
        connection = self._connections.get(node_id)
        if connection is None:
            return
        try:
            self._peer_identity(connection.writer.get_extra_info("ssl_object"))
        except ConsensusError as error:
            log.warning("raft_link.refused", peer=node_id, error=str(error))
            connection.writer.transport.abort()

    def flush(self) -> None:
        """Hand what was sent since the last flush to the sockets, one write a peer."""
        now = self._loop.time()
        for connection in self._pending:
            data = b"".join(connection.frames)
            connection.frames.clear()
            connection.waiting_bytes = 0
            connection.sent_s = now
            transport = connection.writer.transport
            if transport.get_write_buffer_size() + len(data) > OUTPUT_SIZE_BYTES_MAX:
                log.warning("raft_link.cut", peer=connection.peer, reason="it does not read its answers")
                transport.abort()
            elif not connection.writer.is_closing():
                connection.writer.write(data)
        self._pending.clear()

    def set_address(self, node_id: NodeID, address: str) -> None:
        """Reach this member here from now on, whatever the configuration says."""
        self._seen_at[node_id] = address
        if node_id in self._diallers:
            self._dial(node_id, address)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeID) -> None:
        """Serve a stream that ``peer`` dialled; returns when it is closed. Raises nothing but CancelledError."""
        await self._serve(reader, writer, peer, dialled_by=peer)

    def abort(self) -> None:
        """Fall silent at once: what was not flushed is dropped."""
        self._closed = True
        self._pending.clear()
        for dialler in self._diallers.values():
            if dialler.task is not None:
                dialler.task.cancel()
        for connection in self._connections.values():
            connection.writer.transport.abort()

    async def close(self) -> None:
        """Send what was flushed, then close every stream; those served for a listener have returned afterwards."""
        self.flush()
        self._closed = True
        for connection in list(self._connections.values()):
            connection.writer.close()
        await self._tasks.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._idle.wait()
        except TimeoutError:  # a peer does not answer the TLS good-bye
            for writer in list(self._serving):
                writer.transport.abort()
            await self._idle.wait()

    # One connection

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeID, *, dialled_by: NodeID
    ) -> None:
        if self._closed or peer == self._node_id:
            writer.transport.abort()
            return
        connection: _Connection | None = None
        self._serving.add(writer)
        self._idle.clear()
        hello_timer = self._loop.call_later(DIAL_TIMEOUT_S, writer.transport.abort)
        try:
            writer.write(wire.encode_frame(self._hello()))
            decoder = wire.FrameDecoder()
            while data := await reader.read(READ_SIZE_BYTES):
                for number, message in enumerate(decoder.feed(data), 1):
                    if connection is None:
                        hello = self._check_hello(peer, message)
                        is_copy = self._check_machine(peer, hello)
                        hello_timer.cancel()
                        connection = self._install(peer, writer, dialled_by, hello.instance, is_copy=is_copy)
                        self._note_address(peer, hello.address)
                        self._refused.pop(peer, None)
                    connection.heard_s = self._loop.time()
                    self._on_message(peer, message)
                    if number % MESSAGES_A_TURN_MAX == 0:
                        self._on_input()
                        await asyncio.sleep(0)
                        if self._connections.get(peer) is not connection:
                            return  # another stream took its place meanwhile: what came by this one is late
                if connection is not None:
                    self._on_input()
        except (OSError, ssl.SSLError, EOFError) as error:
            log.debug("raft_link.lost", peer=peer, error=str(error))
        except ConsensusError as error:
            # A manager of another group, or one that was removed, dials again and again: it is told of once a reason.
            if self._refused.get(peer) != str(error):
                log.warning("raft_link.refused", peer=peer, error=str(error))
                self._refused[peer] = str(error)
            await _part(writer)
        finally:
            hello_timer.cancel()
            writer.transport.abort()
            self._serving.discard(writer)
            if not self._serving:
                self._idle.set()
            self._remove(connection)

    def _hello(self) -> wire.Hello:
        group = self._configuration
        return wire.Hello(
            wire.PROTOCOL_VERSION,
            self._node_id,
            group.group_id,
            self._address,
            group.ancestors,
            self._superseded_by,
            self._instance,
            self._claim(),
        )

    def _check_hello(self, peer: NodeID, message: wire.Message) -> wire.Hello:
        if not isinstance(message, wire.Hello):
            raise wire.ProtocolError(f"{type(message).__name__} before Hello")
        if message.version != wire.PROTOCOL_VERSION:
            raise wire.ProtocolError(f"speaks version {message.version}, this member {wire.PROTOCOL_VERSION}")
        if message.node_id != peer:
            raise wire.ProtocolError(f"says it is {message.node_id}, its certificate {peer}")
        self._check_group(peer, message)
        return message

    def _check_machine(self, peer: NodeID, hello: wire.Hello) -> bool:
        """One process a member: two of them, each with a vote and with acknowledgements of its own, undo the log.

        Returns:
            Whether it may be a copy, of which the group has need.

        Raises:
            PeerRefusedError: the member is here already, or is another machine. What this member knows of machines may
                be old, or it may have been told nothing: who is refused dials again.
        """
        reason = self._why_copy(peer, hello.claim)
        known = self._connections.get(peer)
        if known is not None and known.instance != hello.instance and (reason or not known.is_copy):
            raise PeerRefusedError(
                f"{peer} is connected already, by another process than this one{reason and ': ' + reason}"
            )
        if reason and known is None and self._has_leader():
            raise PeerRefusedError(f"{peer} is another machine: {reason}")
        return bool(reason)

    def _note_address(self, peer: NodeID, address: str) -> None:
        member = self._configuration.find(peer)
        if member is not None and address and address != self._seen_at.get(peer, member.address):
            self._on_address(peer, address)

    def _check_group(self, peer: NodeID, hello: wire.Hello) -> None:
        ours, theirs = self._configuration.group_id, hello.group_id
        if not ours or not theirs:
            return
        if ours == theirs:
            if hello.superseded_by:
                self._be_superseded(hello.superseded_by)
            return
        if ours in hello.ancestors:
            self._be_superseded(theirs)
            raise PeerRefusedError(f"{peer} belongs to a cluster that was forced from this one")
        if theirs in self._configuration.ancestors:
            raise PeerRefusedError(f"{peer} belongs to the cluster that this one was forced from")
        raise PeerRefusedError(f"{peer} belongs to another Raft group ({theirs}, ours is {ours})")

    def _be_superseded(self, by: str) -> None:
        """Tell the owner, and the members of the group, who may not be in touch with those who know."""
        if self._superseded_by:
            return
        self._superseded_by = by
        self._on_superseded(by)
        for connection in self._connections.values():
            connection.writer.transport.abort()  # the next stream begins with a Hello that says so

    def _install(
        self, peer: NodeID, writer: asyncio.StreamWriter, dialled_by: NodeID, instance: str, *, is_copy: bool
    ) -> _Connection:
        known = self._connections.get(peer)
        now = self._loop.time()
        if known is not None:
            preferred = min(peer, self._node_id)
            if known.instance == instance and known.dialled_by == preferred and dialled_by != preferred:
                raise PeerRefusedError("there is a stream to this peer already")
            self._remove(known)
            known.writer.transport.abort()
        connection = _Connection(peer, writer, dialled_by, instance, is_copy, now, now)
        self._connections[peer] = connection
        self._on_connected(peer)
        return connection

    def _remove(self, connection: _Connection | None) -> None:
        if connection is None or self._connections.get(connection.peer) is not connection:
            return
        del self._connections[connection.peer]
        self._pending.discard(connection)
        if not self._closed:
            self._on_disconnected(connection.peer)
            self._on_input()

    async def _keep_alive(self) -> None:
        """Say something on idle streams; close those that say nothing: the peer, or the way to it, is dead."""
        period, silence = self._timing.heartbeat_period_s * 2, self._timing.election_timeout_s_max * 2
        while True:
            await asyncio.sleep(period)
            now = self._loop.time()
            for connection in list(self._connections.values()):
                if now - connection.heard_s > silence:
                    log.info("raft_link.silent", peer=connection.peer, silent_s=round(now - connection.heard_s, 2))
                    connection.writer.transport.abort()
                    self._remove(connection)
                elif now - connection.sent_s >= period:
                    self.send(connection.peer, wire.Ping())
            self.flush()

    # Dialling

    def _dial(self, node_id: NodeID, address: str) -> None:
        dialler = self._diallers.get(node_id)
        if dialler is None:
            dialler = self._diallers[node_id] = _Dialler(address)
            dialler.task = self._tasks.spawn(self._keep_dialling(node_id, dialler), name=f"raft-dial-{node_id}")
        dialler.address = address

    async def _keep_dialling(self, peer: NodeID, dialler: _Dialler) -> None:
        backoff = Backoff(DIAL_DELAY_S_MIN, DIAL_DELAY_S_MAX, jitter=(0.75, 1.25))
        delay_s = 0.0 if self._node_id < peer else DIAL_DELAY_S_MIN
        while True:
            await asyncio.sleep(delay_s)
            if peer in self._connections:
                backoff.reset()
                delay_s = DIAL_DELAY_S_MIN
                continue
            started = self._loop.time()
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    reader, writer = await self._connect(peer, dialler.address)
            except (OSError, ssl.SSLError, ConsensusError, ValueError) as error:
                log.debug("raft_link.dial_failed", peer=peer, address=dialler.address, error=str(error))
            else:
                await self._serve(reader, writer, peer, dialled_by=self._node_id)
            if self._loop.time() - started > DIAL_DELAY_S_MAX:
                backoff.reset()
            delay_s = backoff.next_s(random.random())

    async def _connect(self, peer: NodeID, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = split_host_port(address)
        reader, writer = await asyncio.open_connection(
            host,
            port,
            ssl=self._client_ssl(),
            server_hostname=peer,
            limit=READ_SIZE_BYTES,
        )
        try:
            tls = writer.get_extra_info("ssl_object")
            if tls.selected_alpn_protocol() != RAFT_ALPN:
                raise PeerRefusedError(f"{address} does not speak {RAFT_ALPN}")
            found = self._peer_identity(tls)
            if found != peer:
                raise PeerRefusedError(f"{address} is {found}, not {peer}")
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer


async def _part(writer: asyncio.StreamWriter) -> None:
    """Close a stream so that our Hello arrives, by which the other end finds out why."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await writer.wait_closed()
