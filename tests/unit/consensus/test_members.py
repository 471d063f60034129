"""Members as they run: threads, sockets, mTLS, a disk."""

from __future__ import annotations

import asyncio
import errno
import pickle
import shutil
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from manager.consensus import thread, transport, wire
from manager.consensus.files import AppendFile, OSFiles
from manager.consensus.port import (
    ConsensusError,
    CorruptStateError,
    IncompleteStateError,
    LeaderState,
    Member,
    MembershipError,
    NodeID,
    NoQuorumError,
    NotLeaderError,
    ProposalUnknownError,
    StateLockedError,
)
from manager.consensus.settings import SnapshotPolicy
from manager.consensus.standstill import Standstill
from manager.consensus.thread import MemberRemovedError
from tests.support_addresses import loopback
from tests.unit.consensus.cluster import FAST, Cluster, Node
from tests.waiting import until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path, host=loopback())
    yield cluster
    await cluster.close()


class FullDisk(OSFiles):
    """Lets nothing more be written once ``full`` is set, or after so many bytes."""

    def __init__(self, *, after_bytes: int = sys.maxsize) -> None:
        self.full = False
        self._left_bytes = after_bytes

    def create(self, path: Path) -> AppendFile:
        file = super().create(path)
        write = file.write

        def refuse(data: bytes) -> None:
            self._left_bytes -= len(data)
            if self.full or self._left_bytes < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(data)

        file.write = refuse  # type: ignore[method-assign]  # a fault at the seam
        return file


class HungDisk(OSFiles):
    """Ends no sync while ``answers`` is not set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()

    def create(self, path: Path) -> AppendFile:
        file = super().create(path)
        sync = file.sync

        def wait() -> None:
            self.answers.wait()
            sync()

        file.sync = wait  # type: ignore[method-assign]  # a fault at the seam
        return file


def others(cluster: Cluster, node: Node) -> list[Node]:
    return [other for other in cluster.nodes.values() if other is not node]


async def test_three_members_hold_the_same_state(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    for number in range(20):
        await nodes[0].consensus.propose(b"%d" % number)
    await until(lambda: all(len(node.machine.entries) == 20 for node in nodes))
    assert nodes[0].machine.entries == nodes[1].machine.entries == nodes[2].machine.entries
    assert [member.node_id for member in nodes[2].consensus.members] == ["a", "b", "c"]
    assert nodes[1].consensus.leader.leader_id == "a"
    with pytest.raises(NotLeaderError, match="leader: a"):
        await nodes[1].consensus.propose(b"x")
    await until(lambda: nodes[1].consensus.reachable == {"a", "b", "c"})


async def test_acknowledged_writes_survive_the_leader(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    acknowledged: list[bytes] = []

    async def write_until_it_dies() -> None:
        number = 0
        while True:
            data = b"%d" % number
            await nodes[0].consensus.propose(data)
            acknowledged.append(data)
            number += 1

    writer = asyncio.ensure_future(write_until_it_dies())
    await until(lambda: len(acknowledged) > 50)
    await cluster.stop("a", transfer=False)
    with pytest.raises((NotLeaderError, ProposalUnknownError)):
        await writer
    leader = await cluster.leader()
    await leader.consensus.propose(b"after")
    assert set(acknowledged) <= set(leader.machine.data)
    back = await cluster.start("a")
    await until(lambda: back.machine.data == leader.machine.data)


async def test_the_whole_group_restarts_with_its_state(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    for number in range(30):
        await nodes[0].consensus.propose(b"%d" % number)
    for name in "cba":
        await cluster.stop(name, transfer=False)
    for name in "abc":
        await cluster.start(name)
    leader = await cluster.leader()
    assert leader.machine.data == [b"%d" % number for number in range(30)]


async def _fall_behind(cluster: Cluster, entries: int) -> Node:
    """A member that was away while so many entries were made and snapshots taken, once it has caught up."""
    cluster.policy = {name: SnapshotPolicy(interval_entries=50, trailing_entries=5) for name in "abc"}
    nodes = await cluster.form(3)
    await cluster.stop("c", transfer=False)
    for number in range(entries):
        await nodes[0].consensus.propose(b"%d" % number + bytes(3000))
    folder = cluster.folder / "state-a" / "snapshots"
    await until(lambda: len(list(folder.iterdir())) == 1)
    back = await cluster.start("c")
    await until(lambda: back.machine.data == nodes[0].machine.data)
    return back


async def test_a_member_far_behind_gets_a_snapshot(cluster: Cluster) -> None:
    back = await _fall_behind(cluster, 200)
    assert back.machine.restored


async def test_stop_hands_leadership_over(cluster: Cluster) -> None:
    await cluster.form(3)
    await cluster.stop("a")
    leader = await cluster.leader()
    assert leader.node_id in "bc"


async def test_transfer_to_a_chosen_member(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await nodes[0].consensus.transfer_leadership(NodeID("c"))
    assert nodes[0].consensus.leader.leader_id == "c"
    await until(lambda: nodes[2].consensus.leader.is_leader)
    with pytest.raises(MembershipError):
        await nodes[2].consensus.transfer_leadership(NodeID("zz"))


async def test_removing_members_down_to_one(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await until(lambda: Member(NodeID("c"), f"{cluster.host}:{cluster.ports['c']}") in nodes[2].consensus.members)
    await nodes[0].consensus.remove_member(NodeID("c"))
    await until(lambda: isinstance(nodes[2].failures[0] if nodes[2].failures else None, MemberRemovedError))
    with pytest.raises(NotLeaderError):
        await nodes[0].consensus.remove_member(NodeID("a"))
    await until(lambda: nodes[1].consensus.leader.is_leader)
    await nodes[1].consensus.remove_member(NodeID("a"))
    assert [member.node_id for member in nodes[1].consensus.members] == ["b"]
    await nodes[1].consensus.propose(b"alone")


async def test_a_removal_that_loses_the_quorum_is_refused(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await cluster.stop("c", transfer=False)
    await until(lambda: nodes[0].consensus.reachable == {"a", "b"})
    with pytest.raises(MembershipError, match="would lose the quorum"):
        await nodes[0].consensus.remove_member(NodeID("b"))


async def test_without_a_majority_nothing_is_acknowledged_and_leadership_ends(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await cluster.stop("b", transfer=False)
    await cluster.stop("c", transfer=False)
    with pytest.raises((ProposalUnknownError, NotLeaderError)):
        await nodes[0].consensus.propose(b"lost", timeout_s=5.0)
    await until(lambda: not nodes[0].consensus.leader.is_leader)
    with pytest.raises((NoQuorumError, NotLeaderError)):
        await nodes[0].consensus.read_barrier(timeout_s=1.0)


async def test_force_new_cluster_with_a_new_address(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await nodes[0].consensus.propose(b"kept")
    for name in "cba":
        await cluster.stop(name, transfer=False)
    old = cluster.ports.pop("a")
    alone = await cluster.start("a", force_new_cluster=True)
    await until(lambda: alone.consensus.leader.is_leader)
    assert alone.machine.data == [b"kept"]
    assert alone.consensus.members == (Member(NodeID("a"), f"{cluster.host}:{cluster.ports['a']}"),)
    assert cluster.ports["a"] != old
    await cluster.start("b")  # the old members cannot take part any more
    await cluster.start("c")
    await alone.consensus.propose(b"new group")
    await until(lambda: any(cluster.nodes[name].consensus.leader.is_leader for name in "bc"))
    assert alone.consensus.leader.is_leader
    assert alone.machine.data == [b"kept", b"new group"]


async def test_a_new_member_does_not_act_on_the_configurations_of_history(cluster: Cluster) -> None:
    """The log it is sent has a configuration without the leader that sends it, and those of the group it was forced from."""
    nodes = await cluster.form(3)
    await nodes[0].consensus.transfer_leadership(NodeID("b"))
    await until(lambda: nodes[1].consensus.leader.is_leader)
    await nodes[1].consensus.remove_member(NodeID("a"))
    await cluster.stop("a", transfer=False)
    shutil.rmtree(cluster.folder / "state-a")
    await cluster.enter("a", leader=nodes[1])
    for _ in range(40):  # more than goes into one batch: what is in force meanwhile counts
        await nodes[1].consensus.propose(bytes(100_000))
    await until(lambda: len(cluster.nodes["a"].machine.entries) == 40)
    for name in "cba":
        await cluster.stop(name, transfer=False)
    alone = await cluster.start("a", force_new_cluster=True)
    await until(lambda: alone.consensus.leader.is_leader)
    new = await cluster.enter("0", leader=alone)  # the lower ID of two keeps the stream that it dialled
    assert Member(NodeID("0"), f"{cluster.host}:{cluster.ports['0']}") in alone.consensus.members
    await until(lambda: new.machine.data == alone.machine.data)
    assert new.failures == []


async def test_a_new_member_that_stopped_in_the_middle_of_the_history_goes_on(cluster: Cluster) -> None:
    """Its log ends in the group that the new cluster was forced from: it is of the new one all the same."""
    nodes = await cluster.form(2)
    for _ in range(40):
        await nodes[0].consensus.propose(bytes(100_000))
    for name in "ba":
        await cluster.stop(name, transfer=False)
    alone = await cluster.start("a", force_new_cluster=True)
    await until(lambda: alone.consensus.leader.is_leader)
    admission = await alone.consensus.admission()
    new = await cluster.start("d", join=True, files=FullDisk(after_bytes=1_500_000))
    await new.consensus.admit(admission)
    member = Member(new.node_id, f"{cluster.host}:{cluster.ports['d']}")
    with pytest.raises(NoQuorumError):
        await alone.consensus.add_member(member, timeout_s=2.0)
    assert [type(failure) for failure in new.failures] == [OSError]
    await cluster.stop("d", transfer=False)
    back = await cluster.start("d", join=True)
    assert 0 < len(back.machine.data) < 40
    assert back.consensus.group_id == alone.consensus.group_id
    await alone.consensus.add_member(member)
    await until(lambda: back.machine.data == alone.machine.data)


async def test_a_stream_is_not_cut_by_a_look_at_a_certificate_that_is_good(cluster: Cluster) -> None:
    """A member that is sent the history hears there that the leader which sends it was demoted once."""
    nodes = await cluster.form(2)
    links = nodes[0].consensus._thread._links
    assert links is not None
    # Of two streams the one stays that the lower ID dialled.
    await until(lambda: any(stream.dialled_by == "a" for stream in list(links._connections.values())))
    (before,) = links._connections.values()
    nodes[0].consensus.recheck(NodeID("b"))
    await nodes[0].consensus.propose(b"x")  # behind it in the queue
    assert list(links._connections.values()) == [before]
    cluster.refuses = lambda node_id: node_id == "b"
    nodes[0].consensus.recheck(NodeID("b"))
    await until(lambda: nodes[0].consensus.reachable == {"a"})


async def test_managers_of_before_find_out_that_a_new_cluster_was_forced(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await nodes[0].consensus.propose(b"kept")
    for name in "cba":
        await cluster.stop(name, transfer=False)
    alone = await cluster.start("a", force_new_cluster=True)
    await until(lambda: alone.consensus.leader.is_leader)
    old = [await cluster.start(name) for name in "bc"]
    await until(lambda: all(node.consensus.superseded for node in old))
    assert not any(node.consensus.leader.is_leader for node in old)
    assert alone.consensus.superseded == ""
    # They know it still when the new cluster cannot be reached.
    for name in "bca":
        await cluster.stop(name, transfer=False)
    old = [await cluster.start(name) for name in "bc"]
    assert all("a new cluster was forced from this one" in node.consensus.superseded for node in old)
    with pytest.raises(NotLeaderError):
        await old[0].consensus.propose(b"second cluster")


async def test_one_that_knows_of_the_forced_cluster_tells_the_others(cluster: Cluster) -> None:
    await cluster.form(3)
    for name in "cba":
        await cluster.stop(name, transfer=False)
    alone = await cluster.start("a", force_new_cluster=True)
    await until(lambda: alone.consensus.leader.is_leader)
    told = await cluster.start("b")
    await until(lambda: bool(told.consensus.superseded))
    await cluster.stop("a", transfer=False)
    other = await cluster.start("c")
    await until(lambda: bool(other.consensus.superseded))


async def test_a_member_that_was_not_admitted_hears_nobody(cluster: Cluster) -> None:
    """Also not a leader that holds it for a member: what it had before it lost its log may have counted."""
    nodes = await cluster.form(1)
    new = await cluster.start("b", join=True)
    with pytest.raises(NoQuorumError):
        await nodes[0].consensus.add_member(Member(new.node_id, f"{cluster.host}:{cluster.ports['b']}"), timeout_s=1.0)
    assert new.machine.data == []
    assert new.consensus.group_id == ""


async def test_a_history_is_not_made_a_cluster(cluster: Cluster) -> None:
    nodes = await cluster.form(1)
    await nodes[0].consensus.propose(b"x")
    new = await cluster.start("b", join=True)
    await new.consensus.admit(await nodes[0].consensus.admission())
    await cluster.stop("b")
    with pytest.raises(IncompleteStateError):
        await cluster.start("b", force_new_cluster=True)
    back = await cluster.start("b", join=True)
    assert back.consensus.group_id == nodes[0].consensus.group_id


async def test_a_member_that_moved_is_found_again(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await cluster.stop("c", transfer=False)
    del cluster.ports["c"]
    back = await cluster.start("c")
    await nodes[0].consensus.propose(b"x")
    await until(lambda: back.machine.data == [b"x"])
    address = f"{cluster.host}:{cluster.ports['c']}"
    await until(lambda: Member(NodeID("c"), address) in nodes[0].consensus.members)


async def test_a_copy_of_a_member_that_runs_is_let_in_nowhere(cluster: Cluster) -> None:
    """Two processes with one vote each would undo what was acknowledged. Its dials win over the others', by its ID."""
    nodes = await cluster.form(3)
    leader = cluster.nodes["b"]
    await nodes[0].consensus.transfer_leadership(NodeID("b"))
    await until(lambda: leader.consensus.leader.is_leader and leader.consensus.reachable == {"a", "b", "c"})
    before = leader.consensus.members
    await cluster.start("copy", copy_of="a")
    for number in range(20):
        await leader.consensus.propose(b"%d" % number)
    await until(lambda: cluster.hellos["copy"] > 20)
    await leader.consensus.propose(b"after")
    await until(lambda: nodes[0].machine.data[-1] == b"after")
    assert len(cluster.nodes["copy"].machine.entries) == 0
    assert leader.consensus.members == before
    assert leader.consensus.reachable == {"a", "b", "c"}


async def test_another_machine_is_let_in_only_when_no_leader_is_found_without_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "LEADERLESS_S", 1.0)
    cluster.why_copy = lambda node_id, claim: "its hardware has another ID" if claim == b"elsewhere" else ""
    nodes = await cluster.form(3)
    await cluster.stop("c")
    cluster.claims["copy"] = b"elsewhere"
    copy = await cluster.start("copy", copy_of="c")
    for number in range(10):
        await nodes[0].consensus.propose(b"%d" % number)
    await until(lambda: cluster.hellos["copy"] > 10)
    assert len(copy.machine.entries) == 0
    assert nodes[0].consensus.reachable == {"a", "b"}
    await cluster.stop("b", transfer=False)
    await until(lambda: not nodes[0].consensus.leader.is_leader)
    leader = await cluster.leader()
    await leader.consensus.propose(b"moved")
    await until(lambda: b"moved" in copy.machine.data)


async def test_a_full_disk_acknowledges_nothing_and_is_reported(cluster: Cluster) -> None:
    files = FullDisk()
    node = await cluster.start("a", files=files)
    await until(lambda: node.consensus.leader.is_leader)
    await node.consensus.propose(b"fits")
    files.full = True
    with pytest.raises(ProposalUnknownError):
        await node.consensus.propose(b"does not")
    assert [type(failure) for failure in node.failures] == [OSError]
    assert not node.consensus.leader.is_leader
    await cluster.stop("a")
    back = await cluster.start("a")
    assert back.machine.data[:1] == [b"fits"]


async def test_a_second_member_on_the_folder_is_refused(cluster: Cluster) -> None:
    await cluster.start("a")
    with pytest.raises(StateLockedError):
        await cluster.start("a")


async def test_a_flipped_byte_is_refused_with_its_place(cluster: Cluster) -> None:
    node = await cluster.start("a")
    await until(lambda: node.consensus.leader.is_leader)
    for number in range(10):
        await node.consensus.propose(b"%d" % number)
    await cluster.stop("a")
    path = sorted((cluster.folder / "state-a" / "journal").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStateError, match=r"journal-0000000001: offset \d+: record \d+ is damaged"):
        await cluster.start("a")


async def test_nothing_lies_in_clear_on_the_disk(cluster: Cluster) -> None:
    node = await cluster.start("a")
    await until(lambda: node.consensus.leader.is_leader)
    await node.consensus.propose(b"a secret of the cluster")
    node.consensus.request_snapshot()
    folder = cluster.folder / "state-a"
    await until(lambda: any((folder / "snapshots").iterdir()))
    await cluster.stop("a")
    assert all(b"a secret" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


# Strangers at the door


async def _talk(cluster: Cluster, pem: Path, data: bytes) -> bytes:
    """Connect to member ``a`` with a certificate, say something, return all it answers before it closes."""
    reader, writer = await asyncio.open_connection(
        cluster.host, cluster.ports["a"], ssl=cluster.authority.client(pem), server_hostname="a"
    )
    try:
        writer.write(data)
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 1 << 31),
        (lambda body: struct.pack(">I", len(body)) + body)(pickle.dumps({"type": "append_entries"}, 2)),
        wire.encode_frame(wire.Vote(99, 99, 99, True)),
        wire.encode_frame(wire.Hello(wire.PROTOCOL_VERSION, "somebody-else", "", "x:1", (), "", "", b"")),
        wire.encode_frame(wire.Hello(99, "m", "", "x:1", (), "", "", b"")),
        wire.encode_frame(wire.Hello(wire.PROTOCOL_VERSION, "m", "another-group", "x:1", (), "", "", b"")),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["giant", "pickle", "no-hello", "other-node", "other-version", "other-group", "http"],
)
async def test_a_manager_that_speaks_nonsense_is_cut_off(cluster: Cluster, data: bytes) -> None:
    node = await cluster.start("a")
    await until(lambda: node.consensus.leader.is_leader)
    term = node.consensus.leader.term
    answer = await _talk(cluster, cluster.authority.issue("m"), data)
    assert len(wire.FrameDecoder().feed(answer)) <= 1  # our Hello at most
    assert await node.consensus.propose(b"still here") == 1
    assert node.consensus.leader.term == term
    assert node.failures == []


async def test_a_manager_that_asks_and_reads_no_answers_is_cut_off(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "OUTPUT_SIZE_BYTES_MAX", 64 * 1024)
    node = await cluster.start("a")
    await until(lambda: node.consensus.leader.is_leader)
    pem = cluster.authority.issue("m")
    _, writer = await asyncio.open_connection(
        cluster.host, cluster.ports["a"], ssl=cluster.authority.client(pem), server_hostname="a"
    )
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
    writer.write(wire.encode_frame(wire.Hello(wire.PROTOCOL_VERSION, "m", "", "x:1", (), "", "", b"")))
    flood = wire.encode_frame(wire.PreVote(1, 1, 1, 0)) * 10_000

    async def ask() -> None:
        while True:
            writer.write(flood)
            await writer.drain()

    try:
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 60)
    finally:
        writer.transport.abort()
    assert await node.consensus.propose(b"still here") == 1
    assert node.failures == []


async def test_the_dialler_refuses_a_server_that_is_another_node(cluster: Cluster) -> None:
    nodes = await cluster.form(2)
    nodes[0].consensus.update_address(NodeID("b"), f"{cluster.host}:{cluster.ports['a']}")
    await nodes[0].consensus.propose(b"x")
    await until(lambda: nodes[1].machine.data == [b"x"])


def test_errors_have_one_base() -> None:
    assert issubclass(MemberRemovedError, ConsensusError)


async def test_a_snapshot_is_read_on_another_thread_and_put_in_place_on_the_owners(cluster: Cluster) -> None:
    back = await _fall_behind(cluster, 100)
    assert back.machine.restored_by == {threading.get_ident()}
    assert back.machine.loaded_by
    assert not back.machine.loaded_by & back.machine.restored_by


async def test_a_leader_whose_disk_hangs_leads_no_more(cluster: Cluster) -> None:
    cluster.timing = FAST
    disk = HungDisk()
    first = await cluster.start("a", files=disk)
    await until(lambda: first.consensus.leader.is_leader)
    for name in ("b", "c"):
        await cluster.enter(name, leader=first)
    told: list[LeaderState] = []
    first.consensus.on_leader_change(told.append)
    disk.answers.clear()
    try:
        for call in (first.consensus.propose(b"hung", timeout_s=20.0), first.consensus.read_barrier(timeout_s=20.0)):
            with pytest.raises((ProposalUnknownError, NotLeaderError)):
                await call
        assert told[-1] == first.consensus.leader
        assert (told[-1].leader_id, told[-1].is_leader) == (None, False)
        await until(lambda: any(node.consensus.leader.is_leader for node in others(cluster, first)))
        second = await cluster.leader()
        await second.consensus.propose(b"on")
    finally:
        disk.answers.set()
    await until(lambda: first.machine.data == second.machine.data and first.consensus.leader.leader_id is not None)
    assert b"on" in first.machine.data


async def test_a_manager_alone_waits_for_a_disk_that_hangs(cluster: Cluster) -> None:
    cluster.timing = FAST
    disk = HungDisk()
    node = await cluster.start("a", files=disk)
    await until(lambda: node.consensus.leader.is_leader)
    told: list[LeaderState] = []
    node.consensus.on_leader_change(told.append)
    disk.answers.clear()
    try:
        proposal = asyncio.ensure_future(node.consensus.propose(b"late"))
        standstill = node.consensus._standstill
        await until(lambda: standstill.is_on)
        assert node.consensus.leader.is_leader
    finally:
        disk.answers.set()
    await proposal
    assert node.machine.data == [b"late"]
    assert told == []


async def test_a_process_that_was_paused_is_no_thread_that_stands_still() -> None:
    told: list[bool] = []
    turns = [0]
    standstill = Standstill(lambda: turns[0], limit_s=1.0, told=told.append)
    standstill.watch()
    time.sleep(2.0)  # noqa: ASYNC251  # nothing of this process runs
    await asyncio.sleep(0)
    assert told == []
    await until(lambda: told == [True])
    turns[0] += 1
    await until(lambda: told == [True, False])
    standstill.end()
