"""What a host answers to init, join and leave in each of its states (features A1.01 to A1.18). Real managers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from pki.certificates import Role
from pki.encryption import DATA_KEY_FILE
from pki.node_certificate import KEY_FILE, ROOT_FILE, NodeCertificate, utc_now
from pki.renewal import Renewer
from proto.ca_pb2 import ManagerAddress
from proto.control_pb2 import GetClusterRequest, GetNodeRequest, ListNodesRequest, UpdateNodeRequest
from proto.node_pb2 import LocalState
from proto.objects_pb2 import JoinTokens, Node, NodeState, Reachability
from proto.specs_pb2 import CAConfig, ClusterSpec, ExternalCA, NodeRole
from tests.unit.pki.support import Authority
from tests.unit.worker.support import PATIENCE_S, Place, place
from tests.waiting import until
from worker.membership import init, local_state
from worker.membership.addresses import SystemAddress
from worker.membership.cluster_member import (
    AlreadyInSwarmError,
    InitRequest,
    InvalidRequestError,
    JoinRequest,
    JoinTimeoutError,
    LeaveRefusedError,
    LocalNodeState,
    NotInSwarmError,
    NotManagerError,
)
from worker.membership.peers import ask_for_renewal
from worker.membership.state_folder import CERTIFICATES, MANAGER_SOCKET, RAFT

ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
NOT_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
IS_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
PARTICIPATES = "You are attempting to leave the swarm on a node that is participating as a manager. "
LAST = "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
ONE_OF_TWO = (
    "Removing this node leaves 1 managers out of 2. Without a Raft quorum your swarm will be inaccessible. "
    "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. "
    "Use `--force` to suppress this message."
)
TOKEN = f"SWMTKN-1-{'0' * 50}-{'1' * 25}"


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Place]:
    """A host in no swarm."""
    async with place(tmp_path / "a") as made:
        yield made


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Place]:
    """Another one."""
    async with place(tmp_path / "b") as made:
        yield made


@pytest.fixture
async def manager(alone: Place) -> Place:
    """The only manager of a swarm."""
    await alone.node.init(init_request(alone))
    return alone


def init_request(host: Place, *, force_new_cluster: bool = False) -> InitRequest:
    return InitRequest(
        listen_addr=host.listen,
        advertise_addr="" if force_new_cluster else host.listen,
        force_new_cluster=force_new_cluster,
    )


def join_request(host: Place, remote: str, token: str = TOKEN) -> JoinRequest:
    return JoinRequest(remote_addrs=[remote], join_token=token, listen_addr=host.listen, advertise_addr=host.listen)


async def tokens(host: Place) -> JoinTokens:
    answer = await host.node.control().GetCluster(GetClusterRequest())
    return answer.cluster.root_ca.join_tokens


async def own_node(host: Place) -> Node:
    """The host's own node object, as it is at this moment."""
    (found,) = map(Node.FromString, (await host.node.control().ListNodes(ListNodesRequest())).nodes)
    return found


# A host in no swarm


async def test_a_host_in_no_swarm_says_so(alone: Place) -> None:
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE
    with pytest.raises(NotManagerError) as refused:
        alone.node.control()
    assert str(refused.value) == NOT_MANAGER
    for force in (False, True):
        with pytest.raises(NotInSwarmError, match=r"^This node is not part of a swarm$"):
            await alone.node.leave(force=force)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"spec": ClusterSpec(name="other")}, 'swarm spec must be named "default"'),
        ({"data_path_port": 1023}, "invalid data path port number 1023, must be in the range 1024 - 49151"),
        ({"data_path_port": 49152}, "invalid data path port number 49152, must be in the range 1024 - 49151"),
        ({"default_addr_pool": ["10.0.0.0/33"]}, "invalid CIDR address: 10.0.0.0/33"),
        ({"default_addr_pool": ["10.0.0.0/8", "10.1.0.0/16"]}, "address pools 10.0.0.0/8 and 10.1.0.0/16 overlap"),
        ({"default_addr_pool": ["10.0.0.0/24"], "subnet_size": 16}, "subnet size 16 is larger than the address pool"),
        ({"auto_lock_managers": True}, "autolock is not served yet"),
        ({"spec": ClusterSpec(ca_config=CAConfig(external_cas=[ExternalCA()]))}, "external certificate authorities"),
        ({"spec": ClusterSpec(ca_config=CAConfig(node_cert_expiry_ns=30 * 60 * 10**9))}, "1h0m0s"),
        ({"advertise_addr": "nope"}, "could not find an IP address or network interface named 'nope'"),
        ({"advertise_addr": "0.0.0.0"}, "advertise address must be a non-zero IP address"),
        ({"listen_addr": "127.0.0.1:x"}, "invalid address '127.0.0.1:x': invalid port"),
        ({"data_path_addr": "0.0.0.0"}, "data path address must be a non-zero IP address or network interface"),
    ],
)
async def test_an_init_that_cannot_be_served_is_refused_before_anything_is_written(
    alone: Place, arguments: dict[str, object], text: str
) -> None:
    request = {"listen_addr": alone.listen, "advertise_addr": alone.listen} | arguments
    with pytest.raises(InvalidRequestError) as refused:
        await alone.node.init(InitRequest(**request))  # type: ignore[arg-type]  # any of its fields
    assert text in str(refused.value)
    assert alone.state == set()
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE


@pytest.mark.parametrize(
    ("remotes", "token", "text"),
    [
        ([], TOKEN, "at least 1 RemoteAddr is required to join"),
        (["127.0.0.1:0"], TOKEN, "invalid address '127.0.0.1:0': invalid port"),
        (["127.0.0.1"], "nonsense", "invalid join token"),
    ],
)
async def test_a_join_that_cannot_work_is_refused_at_once(
    alone: Place, remotes: list[str], token: str, text: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await alone.node.join(JoinRequest(remotes, token, listen_addr=alone.listen, advertise_addr=alone.listen))
    assert text in str(refused.value)
    assert alone.state == set()
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE


# A join that goes on in the background


async def test_a_join_without_an_answer_goes_on_and_can_be_left(alone: Place) -> None:
    alone.node.join_timeout_s = 0.05
    with pytest.raises(JoinTimeoutError, match="The attempt to join the swarm will continue in the background"):
        await alone.node.join(join_request(alone, f"{alone.address}:1"))
    await until(lambda: "could not connect" in alone.node.info().error)
    for again in (alone.node.init(init_request(alone)), alone.node.join(join_request(alone, alone.listen))):
        with pytest.raises(AlreadyInSwarmError):
            await again
    await alone.node.leave(force=False)
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE
    assert alone.node.info().error == ""
    assert alone.state == set()


async def test_a_join_that_fails_in_the_background_is_told_and_leaves_the_way_free(alone: Place, other: Place) -> None:
    alone.node.join_timeout_s = 0.05
    with pytest.raises(JoinTimeoutError):
        await alone.node.join(join_request(alone, other.listen))
    await other.node.init(init_request(other))  # of another cluster than the token's
    await until(lambda: "remote CA does not match fingerprint" in alone.node.info().error)
    assert alone.node.info().local_node_state is LocalNodeState.ERROR
    assert alone.state == set()
    alone.node.join_timeout_s = PATIENCE_S
    await alone.node.join(join_request(alone, other.listen, (await tokens(other)).worker))
    assert alone.node.info().local_node_state is LocalNodeState.ACTIVE
    assert alone.node.info().error == ""


async def test_a_join_succeeds_in_the_background_once_a_manager_answers(alone: Place, other: Place) -> None:
    await other.node.init(init_request(other))
    token = (await tokens(other)).worker
    await other.node.close()
    alone.node.join_timeout_s = 0.05
    with pytest.raises(JoinTimeoutError):
        await alone.node.join(join_request(alone, other.listen, token))
    alone.node.join_timeout_s = PATIENCE_S
    await other.restart()
    await until(lambda: alone.node.info().local_node_state is LocalNodeState.ACTIVE)
    assert alone.node.info().error == ""
    with pytest.raises(AlreadyInSwarmError):
        await alone.node.join(join_request(alone, other.listen, token))


# A member


async def test_a_member_makes_and_joins_no_other_swarm(manager: Place) -> None:
    node_id = manager.node.info().node_id
    for another in (manager.node.init(init_request(manager)), manager.node.join(join_request(manager, "127.0.0.1"))):
        with pytest.raises(AlreadyInSwarmError) as refused:
            await another
        assert str(refused.value) == ALREADY
    assert manager.node.info().local_node_state is LocalNodeState.ACTIVE
    assert manager.node.info().node_id == node_id


async def test_the_last_manager_leaves_with_force_alone_and_makes_another_swarm(manager: Place) -> None:
    first, cluster_tokens = manager.node.info().node_id, await tokens(manager)
    with pytest.raises(LeaveRefusedError) as refused:
        await manager.node.leave(force=False)
    assert str(refused.value) == PARTICIPATES + LAST
    assert manager.node.info().control_available

    await manager.node.leave(force=True)
    assert manager.node.info().local_node_state is LocalNodeState.INACTIVE
    assert manager.state == set()
    assert manager.manager_pid is None
    with pytest.raises(NotInSwarmError):
        await manager.node.leave(force=True)

    second = await manager.node.init(init_request(manager))
    assert second != first
    assert (await tokens(manager)).worker != cluster_tokens.worker


async def test_the_node_of_a_new_swarm_is_ready_and_can_be_updated_at_once(manager: Place) -> None:
    made = await own_node(manager)
    assert made.status.state == NodeState.NODE_STATE_READY
    assert made.description.HasField("tls_info")
    await manager.node.control().UpdateNode(UpdateNodeRequest(ref=made.id, version=made.version.index, spec=made.spec))
    await manager.node.init(init_request(manager, force_new_cluster=True))
    assert (await own_node(manager)).status.state == NodeState.NODE_STATE_READY


async def test_a_swarm_forced_anew_keeps_its_node_and_its_state(manager: Place) -> None:
    before = await manager.node.control().GetCluster(GetClusterRequest())
    node_id = manager.node.info().node_id
    assert await manager.node.init(init_request(manager, force_new_cluster=True)) == node_id
    after = await manager.node.control().GetCluster(GetClusterRequest())
    assert after.cluster.root_ca == before.cluster.root_ca
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert manager.node.info().node_id == node_id


async def test_a_worker_leaves_without_force_and_controls_nothing(manager: Place, other: Place) -> None:
    await other.node.join(join_request(other, manager.listen, (await tokens(manager)).worker))
    assert other.node.info().local_node_state is LocalNodeState.ACTIVE
    assert [peer.raft_addr for peer in other.node.info().remote_managers] == [manager.listen]
    with pytest.raises(NotManagerError) as refused:
        other.node.control()
    assert str(refused.value) == IS_WORKER
    with pytest.raises(NotManagerError) as refused:
        await other.node.init(init_request(other, force_new_cluster=True))
    assert str(refused.value) == IS_WORKER
    await other.node.leave(force=False)
    assert other.node.info().local_node_state is LocalNodeState.INACTIVE
    assert other.state == set()


async def test_one_of_two_managers_is_told_what_its_leaving_does(manager: Place, other: Place) -> None:
    await other.node.join(join_request(other, manager.listen, (await tokens(manager)).manager))
    for member in (manager, other):
        await told_at_leave(member, PARTICIPATES + ONE_OF_TWO)
    await other.node.leave(force=True)
    await told_at_leave(manager, PARTICIPATES + LAST)


async def told_at_leave(host: Place, text: str) -> None:
    """Its managers may still be connecting to each other, or noticing that one is gone."""
    refused = ""
    async with asyncio.timeout(30):
        while refused != text:
            with pytest.raises(LeaveRefusedError) as caught:
                await host.node.leave(force=False)
            refused = str(caught.value)
            await asyncio.sleep(0.01)


async def test_a_join_refused_by_the_managers_leaves_nothing(manager: Place, other: Place) -> None:
    token = (await tokens(manager)).worker
    with pytest.raises(InvalidRequestError, match="code = InvalidArgument desc = A valid join token is necessary"):
        await other.node.join(join_request(other, manager.listen, token[:-25] + "1" * 25))
    assert other.node.info().local_node_state is LocalNodeState.INACTIVE
    assert other.state == set()


# What a daemon finds on disk


async def test_a_member_finds_its_place_again(manager: Place) -> None:
    before, cluster = manager.node.info(), await tokens(manager)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert manager.node.info().node_id == before.node_id
    assert await tokens(manager) == cluster


async def test_a_place_that_the_disk_does_not_let_be_taken_up_is_taken_up_later(manager: Place) -> None:
    cluster = await tokens(manager)
    await manager.node.close()
    folder = manager.host.state_dir / "agent"
    folder.rename(folder.with_name("agent.aside"))
    folder.touch()  # where a folder is to be made
    await manager.restart()  # the daemon comes up
    info = manager.node.info()
    assert info.local_node_state is LocalNodeState.ERROR
    assert "it is tried again" in info.error
    with pytest.raises(AlreadyInSwarmError):
        await manager.node.init(init_request(manager))
    folder.unlink()
    await until(lambda: manager.node.info().control_available, what="the node's place")
    assert "it is tried again" not in manager.node.info().error
    assert await tokens(manager) == cluster


async def test_a_place_that_cannot_be_taken_up_can_be_left(manager: Place) -> None:
    await manager.node.close()
    folder = manager.host.state_dir / "agent"
    folder.rename(folder.with_name("agent.aside"))
    folder.touch()
    await manager.restart()
    await manager.node.leave(force=True)
    assert manager.node.info().local_node_state is LocalNodeState.INACTIVE
    assert not folder.exists()
    await manager.node.init(init_request(manager))


async def test_an_init_that_did_not_finish_is_undone(manager: Place) -> None:
    """The manager that the killed daemon started runs on until then."""
    local_state.begin_init(manager.host.state_dir)
    await manager.restart_after_kill()
    assert manager.node.info().local_node_state is LocalNodeState.INACTIVE
    assert manager.state == set()
    assert manager.manager_pid is None


async def test_an_init_that_fails_is_undone(alone: Place) -> None:
    with socket.create_server((alone.address, 2377)), pytest.raises(Exception, match="cannot listen on"):
        await alone.node.init(init_request(alone))
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE
    assert alone.state == set()
    await alone.node.init(init_request(alone))


async def test_a_leave_that_did_not_finish_is_finished(manager: Place) -> None:
    await manager.node.close()
    local_state.begin_leave(manager.host.state_dir)
    await manager.restart()
    assert manager.node.info().local_node_state is LocalNodeState.INACTIVE
    assert manager.state == set()


@pytest.mark.parametrize("lost", [KEY_FILE, ROOT_FILE])
async def test_a_certificate_file_that_was_lost_costs_no_more_than_itself(manager: Place, lost: str) -> None:
    """The only copy of a swarm's state lies beside it."""
    cluster = await tokens(manager)
    await manager.node.close()
    file = manager.host.state_dir / CERTIFICATES / lost
    content, before = file.read_bytes(), manager.state
    file.unlink()
    await manager.restart()
    assert manager.node.info().local_node_state is LocalNodeState.ERROR
    assert str(file) in manager.node.info().error
    assert manager.state == before
    with pytest.raises(LeaveRefusedError, match="Leaving erases its copy of the swarm's state"):
        await manager.node.leave(force=False)
    file.write_bytes(content)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert await tokens(manager) == cluster


async def test_a_lost_key_of_the_log_is_asked_for_and_no_other_made(manager: Place) -> None:
    cluster = await tokens(manager)
    await manager.node.close()
    file = manager.host.state_dir / CERTIFICATES / DATA_KEY_FILE
    content = file.read_bytes()
    file.unlink()
    await manager.restart()
    await until(lambda: str(file) in manager.node.info().error)
    assert not file.exists()
    file.write_bytes(content)
    await until(lambda: manager.node.info().control_available)  # it is started again and again
    assert await tokens(manager) == cluster


def without_cluster(text: str) -> str:
    return text.replace('"cluster_id"', '"former_cluster_id"')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _text: "", "node.json is damaged"),
        (lambda text: text[: len(text) // 2], "node.json is damaged"),
        (lambda _text: "{}", "node.json is of node '' in cluster ''"),
        (lambda text: text.replace('"node_id": "', '"node_id": "x', 1), "node.json is of node 'x"),
        (without_cluster, "in cluster ''"),
        (lambda text: text.replace(":2377", ":nonsense"), "invalid port"),
    ],
    ids=["empty", "half", "of nobody", "of another node", "without a field", "another form of address"],
)
async def test_the_engine_of_a_node_whose_place_cannot_be_read_works_and_the_rest_waits(
    manager: Place, damage: Callable[[str], str], said: str
) -> None:
    cluster = await tokens(manager)
    await manager.node.close()
    file = manager.host.state_dir / local_state.FILE_NAME
    content, before = file.read_text(), manager.state
    file.write_text(damage(content))
    await manager.restart()  # the daemon comes up, whatever is in there
    assert manager.node.info().local_node_state is LocalNodeState.ERROR
    assert said in manager.node.info().error
    assert manager.state == before
    for other_swarm in (
        manager.node.init(init_request(manager)),
        manager.node.join(join_request(manager, "127.0.0.1")),
    ):
        with pytest.raises(AlreadyInSwarmError):
            await other_swarm
    with pytest.raises(LeaveRefusedError):
        await manager.node.leave(force=False)
    file.write_text(content)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert await tokens(manager) == cluster


async def test_a_member_whose_place_is_lost_says_so_and_begins_nothing_new(manager: Place) -> None:
    cluster = await tokens(manager)
    await manager.node.close()
    file = manager.host.state_dir / local_state.FILE_NAME
    content = file.read_bytes()
    file.unlink()
    await manager.restart()
    assert manager.node.info().local_node_state is LocalNodeState.ERROR
    assert manager.node.info().error == (
        f"{file} is missing; restore the file and start the daemon again, or leave the swarm with force"
    )
    with pytest.raises(NotManagerError, match=f"{file} is missing"):  # and not to begin or join another
        manager.node.control()
    with pytest.raises(AlreadyInSwarmError):
        await manager.node.init(init_request(manager))
    with pytest.raises(LeaveRefusedError):
        await manager.node.leave(force=False)
    file.write_bytes(content)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert await tokens(manager) == cluster


async def test_a_lost_log_that_nobody_else_has_is_told_and_not_begun_anew(manager: Place) -> None:
    cluster = await tokens(manager)
    await manager.node.close()
    log, kept = manager.host.state_dir / RAFT, manager.host.state_dir / "kept"
    log.rename(kept)
    await manager.restart()
    told = f"{log}: empty, and nobody else is known to have the swarm's state; restore it from a backup"
    await until(lambda: told in manager.node.info().error)
    assert not manager.node.info().control_available
    with pytest.raises(NotManagerError, match=f"the manager of this node does not run: {log}: empty"):
        manager.node.control()
    await manager.node.close()
    shutil.rmtree(log)
    kept.rename(log)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    assert await tokens(manager) == cluster


async def test_a_manager_that_was_demoted_and_promoted_while_it_was_away_is_one_again(
    manager: Place, other: Place, tmp_path: Path
) -> None:
    """It never heard of its demotion, and its log is that of a member that was removed."""

    async def look() -> Node:
        return (await manager.node.control().GetNode(GetNodeRequest(ref=node_id))).node

    async def give_role(role: NodeRole.ValueType) -> None:
        node = await look()
        node.spec.role = role
        await manager.node.control().UpdateNode(
            UpdateNodeRequest(ref=node_id, version=node.version.index, spec=node.spec)
        )

    secret = (await tokens(manager)).manager
    async with place(tmp_path / "c") as third:
        for host in (other, third):
            await host.node.join(join_request(host, manager.listen, secret))
        node_id = other.node.info().node_id
        await other.node.close()
        await give_role(NodeRole.NODE_ROLE_WORKER)
        while (await look()).role != NodeRole.NODE_ROLE_WORKER:
            await asyncio.sleep(0.02)
        await give_role(NodeRole.NODE_ROLE_MANAGER)
        certificate, state = (
            NodeCertificate.load(other.host.state_dir / CERTIFICATES),
            local_state.load(other.host.state_dir),
        )
        assert state is not None
        managers = list(state.managers)
        await Renewer(certificate, lambda csr: ask_for_renewal(managers, certificate, csr)).renew_once()
        file, log = other.host.state_dir / local_state.FILE_NAME, other.host.state_dir / RAFT
        content = file.read_text()
        file.write_text(content.replace(":7946", ":1"))  # asks nobody to take it in before it hears that it is out
        (log / "of before").touch()
        await other.restart()
        await until(lambda: not (log / "of before").exists(), deadline_s=PATIENCE_S)
        await other.node.close()
        file.write_text(content)
        await other.restart()
        async with asyncio.timeout(PATIENCE_S):
            while (await look()).manager_status.reachability != Reachability.REACHABILITY_REACHABLE:
                await asyncio.sleep(0.1)
            await other.node.wait_control(PATIENCE_S)
        assert await tokens(other) == await tokens(manager)


async def test_a_manager_whose_certificate_ran_out_while_it_was_off_gives_itself_another_where_it_leads(
    alone: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(init, "utc_now", lambda: utc_now() - timedelta(days=100))
        await alone.node.init(init_request(alone))
    await until(lambda: not alone.node.info().error)
    assert NodeCertificate.load(alone.host.state_dir / CERTIFICATES).identity.not_after > utc_now()
    await until(lambda: alone.node.info().local_node_state is LocalNodeState.ACTIVE)
    assert (await own_node(alone)).status.state == NodeState.NODE_STATE_READY


async def test_going_back_to_an_earlier_version_keeps_the_node(manager: Place) -> None:
    await manager.node.close()
    file = manager.host.state_dir / local_state.FILE_NAME
    file.write_text(file.read_text().replace("{", '{"of_a_later_version": {"a": [1]}, ', 1))
    await manager.restart()
    await until(lambda: manager.node.info().control_available)


async def test_leaving_with_files_that_cannot_be_used_ends_a_manager_that_runs_on(manager: Place) -> None:
    (manager.host.state_dir / CERTIFICATES / ROOT_FILE).unlink()
    await manager.restart_after_kill()
    assert manager.node.info().local_node_state is LocalNodeState.ERROR
    assert manager.manager_pid is not None
    await manager.node.leave(force=True)
    assert manager.manager_pid is None
    assert manager.state == set()


@pytest.mark.parametrize("role", [NodeRole.NODE_ROLE_MANAGER, NodeRole.NODE_ROLE_WORKER])
async def test_a_member_whose_files_are_damaged_says_so_and_can_leave(alone: Place, role: NodeRole.ValueType) -> None:
    folder = alone.host.state_dir
    NodeCertificate.create(folder / CERTIFICATES, Authority().credentials(Role.MANAGER))
    (folder / CERTIFICATES / KEY_FILE).write_bytes(b"no key")
    local_state.save(folder, LocalState(node_id="n", role=role, advertise_addr=alone.listen))
    await alone.restart()
    assert alone.node.info().local_node_state is LocalNodeState.ERROR
    assert alone.node.info().error
    with pytest.raises(AlreadyInSwarmError):
        await alone.node.init(init_request(alone))
    if role == NodeRole.NODE_ROLE_MANAGER:
        with pytest.raises(LeaveRefusedError, match="This node is a manager whose files cannot be used"):
            await alone.node.leave(force=False)
        assert alone.state == {CERTIFICATES, "node.json"}
    await alone.node.leave(force=role == NodeRole.NODE_ROLE_MANAGER)
    assert alone.node.info().local_node_state is LocalNodeState.INACTIVE
    assert alone.state == set()


async def test_a_promotion_cut_short_after_the_certificate_makes_a_manager_all_the_same(manager: Place) -> None:
    """The certificate decides whether a manager runs here; a manager never leaves without force."""
    await manager.node.close()
    state = local_state.load(manager.host.state_dir)
    assert state is not None
    state.role = NodeRole.NODE_ROLE_WORKER
    local_state.save(manager.host.state_dir, state)
    await manager.restart()
    await until(lambda: manager.node.info().control_available)
    with pytest.raises(LeaveRefusedError):
        await manager.node.leave(force=False)
    assert (manager.host.state_dir / RAFT).exists()


# The manager process of a node


async def test_a_manager_that_died_answers_again_once_it_is_started_again(manager: Place) -> None:
    first = manager.manager_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    assert "was killed: out of memory?" in manager.node.info().error
    await until(lambda: manager.node.info().control_available)
    await until(lambda: manager.node.info().error == "")
    assert manager.manager_pid not in (None, first)


async def test_a_manager_that_is_just_starting_is_waited_for(manager: Place) -> None:
    """Both after a restart of the daemon and after the process died: others may lead meanwhile."""
    await manager.restart()
    with pytest.raises(NotManagerError):
        manager.node.control()
    control = await manager.node.wait_control(PATIENCE_S)
    assert (await control.GetCluster(GetClusterRequest())).cluster.id
    assert manager.manager_pid is not None
    os.kill(manager.manager_pid, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    control = await manager.node.wait_control(PATIENCE_S)
    assert (await control.GetCluster(GetClusterRequest())).cluster.id


async def wait_control_without_patience(place: Place) -> None:
    """Raises: TimeoutError: it is waited for."""
    async with asyncio.timeout(PATIENCE_S):
        await place.node.wait_control(1000.0)


async def test_a_manager_that_ends_again_and_again_is_not_waited_for(manager: Place) -> None:
    journal = manager.host.state_dir / RAFT / "journal"
    await manager.node.close()
    shutil.rmtree(journal)
    journal.write_text("no folder")
    await manager.restart()
    await until(lambda: manager.node.info().error != "")
    with pytest.raises(NotManagerError):
        await wait_control_without_patience(manager)


async def test_who_is_no_manager_waits_for_none(manager: Place, other: Place) -> None:
    with pytest.raises(NotManagerError):
        await wait_control_without_patience(other)
    await other.node.join(JoinRequest([manager.listen], (await tokens(manager)).worker, other.listen))
    with pytest.raises(NotManagerError, match="Worker nodes can't"):
        await wait_control_without_patience(other)


async def test_a_manager_is_reached_again_after_its_run_folder_was_emptied(manager: Place) -> None:
    """/run is wiped while daemons run; then the daemon is killed, and its manager, which runs on, has no socket."""
    first = manager.manager_pid
    shutil.rmtree(manager.host.run_dir)
    await manager.restart_after_kill()
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid == first
    assert stat.S_IMODE((manager.host.run_dir / MANAGER_SOCKET).stat().st_mode) == 0o600


async def test_a_manager_is_started_again_without_its_run_folder(manager: Place) -> None:
    assert manager.manager_pid is not None
    shutil.rmtree(manager.host.run_dir)
    os.kill(manager.manager_pid, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    await until(lambda: manager.node.info().control_available)


async def test_a_manager_that_outlived_its_node_is_found_and_still_watched(manager: Place) -> None:
    first = manager.manager_pid
    assert first is not None
    await manager.restart_after_kill()
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid == first
    os.kill(first, signal.SIGKILL)
    await until(lambda: not manager.node.info().control_available)
    await until(lambda: manager.node.info().control_available)
    assert manager.manager_pid not in (None, first)


GONE = "192.0.2.7"


def as_if_moved(host: Place, *, asked: str | None) -> None:
    """What lies on the disk of a host that had another address when it was made a manager."""
    state = local_state.load(host.host.state_dir)
    assert state is not None
    state.advertise_addr, state.data_path_addr = f"{GONE}:2377", GONE
    state.managers[0].raft_addr, state.managers[0].grpc_addr = f"{GONE}:2377", f"{GONE}:7946"
    if asked is not None:
        state.advertise_asked = asked
    local_state.save(host.host.state_dir, state)


async def test_a_host_whose_address_changed_over_night_tells_the_new_one(manager: Place) -> None:
    async def addresses() -> list[SystemAddress]:
        return [SystemAddress("eth0", manager.address), SystemAddress("eth1", "198.51.100.1")]

    manager.host = msgspec.structs.replace(manager.host, addresses=addresses)
    await manager.node.close()
    as_if_moved(manager, asked="eth0")
    await manager.restart()
    await until(lambda: manager.node.info().local_node_state is LocalNodeState.ACTIVE)
    assert manager.node.info().node_addr == manager.address
    state = local_state.load(manager.host.state_dir)
    assert state is not None
    assert (state.advertise_addr, state.data_path_addr) == (manager.listen, manager.address)
    told = ManagerAddress(node_id=state.node_id, raft_addr=manager.listen, grpc_addr=f"{manager.address}:7946")
    assert list(state.managers) == [told]


@pytest.mark.parametrize("asked", [None, "eth9"], ids=["the user's own", "an interface that is gone"])
async def test_an_address_stays_that_the_user_named_or_for_which_there_is_no_other(
    manager: Place, asked: str | None
) -> None:
    """Behind address translation no address that is told is the host's own (X23)."""

    async def addresses() -> list[SystemAddress]:
        return [SystemAddress("eth0", manager.address), SystemAddress("eth1", "198.51.100.1")]

    manager.host = msgspec.structs.replace(manager.host, addresses=addresses)
    await manager.node.close()
    as_if_moved(manager, asked=asked)
    await manager.restart()
    assert manager.node.info().node_addr == GONE


async def test_a_swarm_forced_anew_tells_its_new_address(manager: Place) -> None:
    """X22: with the old one its workers, and its own agent, would look for a manager where there is none."""
    first, second, rest = manager.address.split(".", 2)
    moved = f"{first}.{int(second) ^ 128}.{rest}"
    request = InitRequest(listen_addr=f"{moved}:2377", advertise_addr=f"{moved}:2377", force_new_cluster=True)
    await manager.node.init(request)
    node_id = manager.node.info().node_id

    def told() -> list[tuple[str, str]]:
        return [(one.raft_addr, one.grpc_addr) for one in manager.node.info().remote_managers]

    await until(lambda: manager.node.info().local_node_state is LocalNodeState.ACTIVE)
    async with asyncio.timeout(30):
        while True:
            node = (await manager.node.control().GetNode(GetNodeRequest(ref=node_id))).node
            if (node.raft_addr, node.grpc_addr) == (f"{moved}:2377", f"{moved}:7946"):
                break
            await asyncio.sleep(0.05)
    await until(lambda: told() == [(f"{moved}:2377", f"{moved}:7946")])
