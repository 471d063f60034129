"""One suite for both implementations of the consensus port: pysyncobj over mTLS with a disk, and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import (
    ENTRY_SIZE_BYTES_MAX,
    Consensus,
    EntryTooLargeError,
    LeaderState,
    Member,
    MembershipError,
    NodeID,
    NotLeaderError,
    ProposalUnknownError,
)
from tests.support_addresses import loopback
from tests.unit.consensus.cluster import Cluster, Register
from tests.waiting import until

Started = Callable[[], Awaitable[tuple[Consensus, Register]]]


@pytest.fixture(params=["raft", "inprocess"])
async def started(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Started]:
    """A function that starts the only member of a new group and waits until it leads."""
    cluster = Cluster(tmp_path, host=loopback())

    async def start() -> tuple[Consensus, Register]:
        if request.param == "raft":
            node = await cluster.start("a")
            await until(lambda: node.consensus.leader.is_leader)
            return node.consensus, node.machine
        machine = Register()
        consensus = InProcessConsensus(NodeID("a"))
        await consensus.start(machine)
        return consensus, machine

    yield start
    await cluster.close()


async def test_the_only_member_leads(started: Started) -> None:
    consensus, _ = await started()
    assert consensus.node_id == "a"
    assert consensus.leader.leader_id == "a"
    assert consensus.leader.term >= 1
    assert [member.node_id for member in consensus.members] == ["a"]
    assert not consensus.members[0].learner
    assert consensus.reachable == {"a"}


async def test_propose_returns_what_apply_returned(started: Started) -> None:
    consensus, machine = await started()
    assert await consensus.propose(b"one") == 1
    assert await consensus.propose(b"two") == 2
    assert machine.data == [b"one", b"two"]


async def test_indexes_rise_and_applied_index_follows(started: Started) -> None:
    consensus, machine = await started()
    await asyncio.gather(*(consensus.propose(b"%d" % number) for number in range(50)))
    indexes = [index for index, _ in machine.entries]
    assert indexes == sorted(set(indexes))
    assert consensus.applied_index >= indexes[-1]
    assert machine.data == [b"%d" % number for number in range(50)]


async def test_an_exception_that_apply_returns_is_raised(started: Started) -> None:
    consensus, _ = await started()
    with pytest.raises(ValueError, match="refused"):
        await consensus.propose(b"refuse")
    assert await consensus.propose(b"next") == 2


async def test_an_exception_that_apply_raises_ends_the_member(started: Started) -> None:
    consensus, _ = await started()
    failures: list[BaseException] = []
    consensus.on_failure(failures.append)
    with pytest.raises(ProposalUnknownError):
        await consensus.propose(b"break")
    assert [str(failure) for failure in failures] == ["told to break"]
    assert not consensus.leader.is_leader
    with pytest.raises(NotLeaderError):
        await consensus.propose(b"next")


async def test_an_entry_that_is_too_large_is_refused(started: Started) -> None:
    consensus, machine = await started()
    await consensus.propose(bytes(ENTRY_SIZE_BYTES_MAX))
    with pytest.raises(EntryTooLargeError):
        await consensus.propose(bytes(ENTRY_SIZE_BYTES_MAX + 1))
    assert len(machine.entries) == 1


async def test_a_command_is_applied_once_under_its_id(started: Started) -> None:
    consensus, machine = await started()
    assert await consensus.propose(b"once", command_id=b"i" * 16) == 1
    assert await consensus.propose(b"other") == 2
    assert await consensus.propose(b"once", command_id=b"i" * 16) == 1
    assert machine.data == [b"once", b"other"]
    with pytest.raises(ValueError, match="16 bytes"):
        await consensus.propose(b"x", command_id=b"short")


async def test_a_read_barrier_returns_an_index_behind_every_acknowledged_write(started: Started) -> None:
    consensus, machine = await started()
    await consensus.propose(b"one")
    assert await consensus.read_barrier() >= machine.entries[-1][0]


async def test_leader_changes_are_told(started: Started) -> None:
    consensus, _ = await started()
    seen: list[LeaderState] = []
    consensus.on_leader_change(seen.append)
    await consensus.stop()
    assert not consensus.leader.is_leader
    assert seen == [] or not seen[-1].is_leader


async def test_a_stopped_member_refuses(started: Started) -> None:
    consensus, _ = await started()
    await consensus.stop()
    with pytest.raises(NotLeaderError):
        await consensus.propose(b"x")
    with pytest.raises(NotLeaderError):
        await consensus.read_barrier()


async def test_the_last_member_cannot_be_removed_and_a_stranger_is_unknown(started: Started) -> None:
    consensus, _ = await started()
    with pytest.raises(MembershipError, match="would lose the quorum"):
        await consensus.remove_member(NodeID("a"))
    with pytest.raises(MembershipError, match="not a member"):
        await consensus.remove_member(NodeID("zz"))
    with pytest.raises(MembershipError):
        await consensus.transfer_leadership()


async def test_adding_a_member_that_votes_already_changes_nothing(started: Started) -> None:
    consensus, _ = await started()
    before = consensus.members
    await consensus.add_member(Member(NodeID("a"), before[0].address))
    assert list(consensus.members) == list(before)
