"""Members as they run: threads, sockets, mTLS, a disk."""

from __future__ import annotations

import asyncio
import errno
import pickle
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from manager.consensus import wire
from manager.consensus.files import AppendFile, OSFiles
from manager.consensus.port import (
    ConsensusError,
    CorruptStateError,
    Member,
    MembershipError,
    NodeID,
    NoQuorumError,
    NotLeaderError,
    ProposalUnknownError,
    StateLockedError,
)
from manager.consensus.settings import SnapshotPolicy
from manager.consensus.thread import MemberRemovedError
from tests.support_addresses import loopback
from tests.unit.consensus.cluster import Cluster, Node
from tests.waiting import until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path, host=loopback())
    yield cluster
    await cluster.close()


class FullDisk(OSFiles):
    """Lets nothing more be written once ``full`` is set."""

    def __init__(self) -> None:
        self.full = False

    def create(self, path: Path) -> AppendFile:
        file = super().create(path)
        write = file.write

        def refuse(data: bytes) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(data)

        file.write = refuse  # type: ignore[method-assign]  # a fault at the seam
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


async def test_a_member_that_moved_is_found_again(cluster: Cluster) -> None:
    nodes = await cluster.form(3)
    await cluster.stop("c", transfer=False)
    del cluster.ports["c"]
    back = await cluster.start("c")
    await nodes[0].consensus.propose(b"x")
    await until(lambda: back.machine.data == [b"x"])
    address = f"{cluster.host}:{cluster.ports['c']}"
    await until(lambda: Member(NodeID("c"), address) in nodes[0].consensus.members)


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
        wire.encode_frame(wire.Hello(1, "somebody-else", "", "x:1")),
        wire.encode_frame(wire.Hello(99, "m", "", "x:1")),
        wire.encode_frame(wire.Hello(1, "m", "another-group", "x:1")),
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
