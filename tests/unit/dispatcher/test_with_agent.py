"""Dispatcher and agents together over real gRPC streams, with the real store."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from base import connections
from manager.dispatcher import heartbeat, liveness
from manager.dispatcher.assignments import AssignmentSet, Key
from manager.dispatcher.looking import Answer
from manager.log_limit import LogLimit
from manager.model.nodes import copy_node
from manager.store import SECRETS, Working
from proto.dispatcher_pb2 import SessionMessage, SessionRequest, TaskStatusUpdate
from proto.dispatcher_pb2_grpc import DispatcherStub
from proto.objects_pb2 import Config, Machine, NodeDescription, NodeState, Secret, Task, TaskState, TaskStatus
from proto.specs_pb2 import ConfigReference, SecretReference
from tests.unit.dispatcher.support import (
    WORKER_PORT,
    AgentHost,
    Manager,
    RawAgent,
    channel_of,
    leading_manager,
    make_node,
    make_spec_version,
    make_task,
)
from tests.waiting import until
from worker.agent import session
from worker.agent.contents import Contents

RUNNING = TaskState.TASK_STATE_RUNNING
SHUTDOWN = TaskState.TASK_STATE_SHUTDOWN


async def test_a_node_becomes_ready_and_runs_what_it_is_assigned(manager: Manager, host: AgentHost) -> None:
    host.start()
    await until(lambda: manager.node("n1").status.state == NodeState.NODE_STATE_READY)
    await until(lambda: host.heard.sessions == [""])
    assert manager.node("n1").description.hostname == "host-n1"
    assert manager.node("n1").status.addr == "192.0.2.7"
    assert host.heard.root_ca_pem == b"root"
    assert [m.grpc_addr for m in host.heard.managers[0]] == [manager.addr]

    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    status = manager.task("t1").status
    assert status.container_status.container_id == "c-t1"
    assert status.container_status.pid == host.executor.containers["t1"].pid
    assert status.HasField("running_since")
    assert [(a.network_id, list(a.addresses)) for a in manager.task("t1").networks_attachments] == [
        ("bridge", ["172.17.0.2/16"])
    ]

    await manager.set_desired("t1", SHUTDOWN)
    await until(lambda: manager.task("t1").status.state == SHUTDOWN)
    assert "t1" in host.executor.containers  # kept for logs until the object goes (A6.09)
    await manager.remove("tasks", "t1")
    await until(lambda: "t1" not in host.executor.containers)


async def test_a_failed_process_is_reported_with_its_exit_code(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    host.executor.exit("t1", 3)
    await until(lambda: manager.task("t1").status.state == TaskState.TASK_STATE_FAILED)
    assert manager.task("t1").status.err == "task: non-zero exit (3)"
    assert manager.task("t1").status.container_status.exit_code == 3


async def test_what_a_node_is_sent_and_says_of_a_task_can_be_followed(manager: Manager, host: AgentHost) -> None:
    with capture_logs() as lines:
        host.start()
        await manager.add(make_task("t1", "n1"))
        await until(lambda: manager.task("t1").status.state == RUNNING)
        await manager.set_desired("t1", SHUTDOWN)
        await until(lambda: manager.task("t1").status.state == SHUTDOWN)
        await until(lambda: [line for line in lines if line["event"] == "task.reported"][-1]["state"] == "SHUTDOWN")
    mine = [line for line in lines if line.get("task_id") == "t1" and line["event"].startswith("task.")]
    assert {(line["service_id"], line["node_id"]) for line in mine if "service_id" in line} == {("web", "n1")}
    sent = [(line["state"], line["desired_state"]) for line in mine if line["event"] == "task.sent"]
    assert sent[:2] == [("ASSIGNED", "RUNNING"), ("RUNNING", "SHUTDOWN")]
    assert set(sent[2:]) <= {("SHUTDOWN", "SHUTDOWN")}, "that it has ended, if it was still looked at"
    said = [line["state"] for line in mine if line["event"] == "task.reported"]
    assert "RUNNING" in said
    assert said[-1] == "SHUTDOWN"


async def test_secrets_reach_a_node_only_while_a_task_needs_them(manager: Manager, host: AgentHost) -> None:
    secret, config = Secret(id="s1"), Config(id="c1")
    secret.spec.name, secret.spec.data = "password", b"hunter2"
    config.spec.name, config.spec.data = "settings", b"x=1"
    version = make_spec_version(
        "db",
        secrets=[SecretReference(secret_id="s1", secret_name="password")],
        configs=[ConfigReference(config_id="c1", config_name="settings")],
    )
    await manager.add(secret, config)
    await manager.add(version)
    agent = host.start()
    await until(lambda: host.heard.sessions == [""])

    def contents() -> Contents:
        return agent._assignments.contents  # nothing public shows a secret

    assert not contents().of(Secret)
    await manager.add(make_task("t1", "n1", service_id="db"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert contents().of(Secret)["s1"].spec.data == b"hunter2"
    await manager.set_desired("t1", SHUTDOWN)
    await until(lambda: not contents().of(Secret) and not contents().of(Config))
    await host.stop()
    assert b"hunter2" not in (host.state_dir / "assignments").read_bytes()


async def test_a_session_is_woken_for_what_its_tasks_need_alone(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[list[str], list[Key]]] = []
    update = AssignmentSet.update

    def counted(self: AssignmentSet, task_ids: Any, keys: Any, tables: Any, entries: Any = ()) -> Any:
        looks.append((sorted(task_ids), list(keys)))
        return update(self, task_ids, keys, tables, entries)

    monkeypatch.setattr(AssignmentSet, "update", counted)
    secret, other = Secret(id="s1"), Secret(id="s2")
    secret.spec.name, secret.spec.data = "password", b"hunter2"
    other.spec.name = "of nobody here"
    await manager.add(secret, other)
    await manager.add(
        make_spec_version("db", secrets=[SecretReference(secret_id="s1", secret_name="password")]),
        make_task("t1", "n1", service_id="db"),
    )
    agent = host.start()
    await until(lambda: manager.task("t1").status.state == RUNNING)
    looks.clear()
    await manager.edit("secrets", "s2", lambda changed: changed.spec.labels.update({"a": "b"}))
    await manager.add(Config(id="c9"))
    await manager.edit("secrets", "s1", lambda changed: changed.spec.labels.update({"a": "b"}))
    await until(lambda: agent._assignments.contents.of(Secret)["s1"].spec.labels)
    assert ([], [(SECRETS, "s1")]) in looks
    assert ([], []) not in looks
    await host.stop()


async def test_a_restarted_daemon_takes_up_its_containers(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"), make_task("t2", "n1"))
    await until(lambda: all(manager.task(t).status.state == RUNNING for t in ("t1", "t2")))
    pids = {task_id: o.pid for task_id, o in host.executor.containers.items()}
    await host.stop()
    host.executor.exit("t2", 9)  # ends while nobody watches
    host.start()
    await until(lambda: manager.task("t2").status.state == TaskState.TASK_STATE_FAILED)
    await until(lambda: len(host.heard.sessions) == 2)
    assert host.executor.containers["t1"].pid == pids["t1"]
    assert manager.task("t1").status.state == RUNNING
    assert host.executor.called("t1") == []
    assert manager.node("n1").status.state == NodeState.NODE_STATE_READY


async def test_with_no_manager_in_sight_a_node_goes_on(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"), make_task("t2", "n1"))
    await until(lambda: all(manager.task(t).status.state == RUNNING for t in ("t1", "t2")))
    await host.stop()
    await manager.follow()
    host.start()  # on what it has on disk
    await until(lambda: "FAILED_PRECONDITION" in "".join(host.heard.sessions))
    host.executor.exit("t2", 1)
    manager.lead()
    await until(lambda: manager.task("t2").status.state == TaskState.TASK_STATE_FAILED)
    assert host.executor.called("t1") == []


async def test_a_new_leader_moves_nodes_to_unknown_and_they_come_back(manager: Manager, host: AgentHost) -> None:
    await manager.add(make_node("gone"))
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    await manager.follow()
    await until(lambda: len(host.heard.sessions) > 1)
    manager.lead()
    await until(lambda: manager.node("gone").status.message.startswith("Node moved to unknown state"))
    await until(lambda: manager.node("n1").status.state == NodeState.NODE_STATE_READY)
    assert manager.node("n1").status.message == ""
    assert manager.task("t1").status.state == RUNNING


async def test_a_removed_node_loses_its_session(manager: Manager, host: AgentHost) -> None:
    host.start()
    await until(lambda: host.heard.sessions == [""])
    await manager.remove("nodes", "n1")
    await until(lambda: any("NOT_FOUND" in reason for reason in host.heard.sessions))


async def test_of_a_removed_node_that_comes_again_and_again_nothing_is_kept(manager: Manager) -> None:
    for node_id in ("gone1", "gone2"):
        async with channel_of(node_id, manager.addr) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await RawAgent(channel).open()
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert manager.dispatcher._liveness._watch._book._entries.keys() == {"n1"}


async def test_a_change_of_the_node_object_is_told(manager: Manager, host: AgentHost) -> None:
    host.start()
    await until(lambda: host.heard.nodes)
    await manager.edit("nodes", "n1", lambda node: node.spec.labels.update({"zone": "a"}))
    await until(lambda: host.heard.nodes[-1].spec.labels.get("zone") == "a")


async def test_many_tasks_take_few_entries(manager: Manager, host: AgentHost) -> None:
    host.start()
    await until(lambda: host.heard.sessions == [""])
    tasks = [make_task(f"t{number}", "n1") for number in range(150)]
    await manager.add(*tasks)
    before = manager.proposals
    await until(lambda: all(manager.task(task.id).status.state == RUNNING for task in tasks))
    assert manager.proposals - before < 40


async def test_leave_stops_and_removes_everything(manager: Manager, host: AgentHost) -> None:
    agent = host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    await agent.leave()
    assert host.executor.containers == {}
    assert host.executor.called("t1")[-2:] == ["stop", "remove"]
    assert not (host.state_dir / "assignments").exists()


async def test_containers_of_unknown_tasks_are_removed_once_the_managers_have_spoken(
    manager: Manager, host: AgentHost
) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    await host.stop()
    await manager.remove("tasks", "t1")
    (host.state_dir / "assignments").unlink()
    host.start()
    await until(lambda: not host.executor.containers)


async def test_a_task_orphaned_while_the_node_was_away_is_stopped(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    await host.stop()

    def orphan(task: Task) -> None:
        task.status.state = TaskState.TASK_STATE_ORPHANED

    await manager.edit("tasks", "t1", orphan)
    host.start()
    await until(lambda: "stop" in host.executor.called("t1"))
    assert manager.task("t1").status.state == TaskState.TASK_STATE_ORPHANED


def state_of(manager: Manager, node_id: str) -> NodeState.ValueType:
    return manager.node(node_id).status.state


async def in_session(manager: Manager, *hosts: AgentHost) -> None:
    """Start the hosts' daemons; return when each has a session, and was looked at in it."""
    for host in hosts:
        host.start()
    await until(lambda: all("" in host.heard.sessions for host in hosts), what="sessions")
    await until(lambda: len(manager.looks) >= len(hosts), what="a look at each host")


async def looked(manager: Manager, count: int) -> None:
    """Return after so many more looks."""
    before = len(manager.looks)
    await until(lambda: len(manager.looks) >= before + count, what="looks")


async def test_a_killed_daemon_has_the_full_grace_while_its_host_answers(tmp_path: Path) -> None:
    async with leading_manager(heartbeat_period_s=100.0) as manager:
        await manager.add(make_node("n1"))
        host = AgentHost("n1", tmp_path / "n1", [manager.addr])
        await in_session(manager, host)
        await host.kill()
        await manager.forgotten("n1")
        manager.later(320.0)
        await looked(manager, 1)
        assert state_of(manager, "n1") == NodeState.NODE_STATE_READY
        host.start()
        await until(lambda: host.heard.sessions.count("") == 2)
        assert state_of(manager, "n1") == NodeState.NODE_STATE_READY
        await host.kill()
        await manager.forgotten("n1")
        manager.later(331.0)  # three of the longest periods
        await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_DOWN)
        assert manager.node("n1").status.message == "heartbeat failure"


async def test_a_daemon_that_stops_in_order_has_the_same_grace(tmp_path: Path) -> None:
    async with leading_manager(heartbeat_period_s=100.0) as manager:
        await manager.add(make_node("n1"))
        host = AgentHost("n1", tmp_path / "n1", [manager.addr])
        await in_session(manager, host)
        await host.stop()
        await manager.forgotten("n1")
        manager.later(320.0)
        await looked(manager, 1)
        assert state_of(manager, "n1") == NodeState.NODE_STATE_READY
        manager.later(11.0)
        await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_DOWN)


async def test_a_host_that_answered_and_is_silent_is_down_at_once(tmp_path: Path) -> None:
    async with leading_manager(heartbeat_period_s=100.0) as manager:
        await manager.add(make_node("n1"), make_node("n2"), make_node("n3"))
        hosts = [AgentHost(node_id, tmp_path / node_id, [manager.addr]) for node_id in ("n1", "n2", "n3")]
        await in_session(manager, *hosts)
        manager.answers[WORKER_PORT] = Answer.SILENT
        await hosts[0].kill()
        await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_DOWN)
        assert state_of(manager, "n2") == NodeState.NODE_STATE_READY
        for host in hosts[1:]:
            await host.stop()


async def test_silence_of_a_host_that_never_answered_means_nothing(tmp_path: Path) -> None:
    """A firewall: three periods as ever."""
    async with leading_manager(heartbeat_period_s=100.0) as manager:
        manager.answers[WORKER_PORT] = Answer.SILENT
        await manager.add(make_node("n1"))
        host = AgentHost("n1", tmp_path / "n1", [manager.addr])
        await in_session(manager, host)
        await host.kill()
        await manager.forgotten("n1")
        await looked(manager, 2)
        assert state_of(manager, "n1") == NodeState.NODE_STATE_READY
        manager.later(331.0)
        await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_DOWN)


@pytest.mark.parametrize("answer", [Answer.ANSWERED, Answer.SILENT])
async def test_a_missed_heartbeat_is_a_reason_to_look(answer: Answer) -> None:
    async with leading_manager(heartbeat_period_s=100.0) as manager, channel_of("n1", manager.addr) as channel:
        await manager.add(make_node("n1"))
        call = DispatcherStub(channel).Session()
        await call.write(SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a"))
        message = await call.read()
        assert isinstance(message, SessionMessage)
        assert 90e9 <= message.heartbeat_period_ns <= 110e9
        await until(lambda: bool(manager.looks))
        manager.answers[WORKER_PORT] = answer
        manager.later(140.0)
        if answer is Answer.ANSWERED:  # a daemon that stands still on a host that lives
            await looked(manager, 2)
            assert state_of(manager, "n1") == NodeState.NODE_STATE_READY
            manager.later(200.0)
        await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_DOWN)
        assert await call.code() == grpc.StatusCode.UNAVAILABLE


async def test_an_agent_leaves_a_manager_whose_host_is_silent(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "QUIET_S", -1.0)  # so that any silence is too long
    host.start()
    await until(lambda: any("host was silent" in reason for reason in host.heard.sessions))
    monkeypatch.setattr(session, "QUIET_S", 60.0)
    await until(lambda: host.heard.sessions[-1] == "")


class Connection:
    """One of several that this process has with a manager."""

    def __init__(self, silence_s: float) -> None:
        self.said_s, self.asked = silence_s, 0

    def silence_s(self) -> float:
        self.asked += 1
        return self.said_s


async def test_a_connection_that_lost_its_way_is_no_silence_of_a_host_that_others_hear(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of before the last renewal, say: each new session would watch it anew, and end."""
    lost, well = Connection(60.0), Connection(0.0)
    monkeypatch.setattr(session, "QUIET_S", 0.05)
    monkeypatch.setattr(session, "LISTEN_PERIOD_S", 0.01)
    monkeypatch.setattr(connections, "find_each", lambda peer: [lost, well])
    host.start()
    await until(lambda: well.asked > 50)
    assert host.heard.sessions == [""]
    well.said_s = 60.0
    await until(lambda: any("host was silent" in reason for reason in host.heard.sessions))


@pytest.mark.parametrize("answer", [Answer.ANSWERED, Answer.SILENT])
async def test_a_host_lost_with_the_leadership_is_looked_at(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(liveness, "RAFT_HEARING_S", 0.0)
    await manager.add(make_node("old-leader"), make_node("slow-worker"))
    host.start()
    await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_READY)
    await manager.follow()
    manager.unheard = {"old-leader": "127.0.0.1:2377"}
    manager.answers[2377] = answer
    manager.lead()
    await until(lambda: 2377 in manager.looks)
    if answer is Answer.SILENT:
        await until(lambda: state_of(manager, "old-leader") == NodeState.NODE_STATE_DOWN)
    await until(lambda: state_of(manager, "n1") == NodeState.NODE_STATE_READY)
    # Six periods are thirty seconds here: who may live has them.
    assert state_of(manager, "slow-worker") == NodeState.NODE_STATE_UNKNOWN
    assert answer is Answer.SILENT or state_of(manager, "old-leader") == NodeState.NODE_STATE_UNKNOWN


async def test_managers_look_where_the_session_came_from(manager: Manager) -> None:
    """Else a worker could have them knock at doors of others (``Manager`` checks each look's host)."""
    async with channel_of("n1", manager.addr) as channel:
        call = DispatcherStub(channel).Session()
        request = SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a", addr="192.0.2.99")
        await call.write(request)
        assert isinstance(await call.read(), SessionMessage)
        assert manager.node("n1").status.addr == "192.0.2.99"
        await until(lambda: manager.looks == [WORKER_PORT])
        call.cancel()
        await looked(manager, 1)


@pytest.mark.parametrize("elsewhere", [None, True, False])
async def test_a_manager_that_reaches_nobody_doubts_itself(tmp_path: Path, elsewhere: bool | None) -> None:
    async with leading_manager(heartbeat_period_s=100.0) as manager:
        names = ("n1", "n2", "n3")
        await manager.add(*(make_node(node_id) for node_id in names))
        hosts = [AgentHost(node_id, tmp_path / node_id, [manager.addr]) for node_id in names]
        await in_session(manager, *hosts)
        manager.answers[WORKER_PORT] = Answer.SILENT
        if elsewhere is not None:
            manager.elsewhere = dict.fromkeys(names, elsewhere)
        watch = manager.dispatcher._liveness._watch
        for node_id in names:
            watch._suspicions.quiet(node_id, watch._monotonic())  # as its connection says
        watch._changed.set()
        if elsewhere is False:  # so nobody reaches them
            await until(lambda: all(state_of(manager, name) == NodeState.NODE_STATE_DOWN for name in names))
        else:
            await looked(manager, 3)
            assert all(state_of(manager, name) == NodeState.NODE_STATE_READY for name in names)
        if elsewhere:
            await until(lambda: manager.handed_over == 1)
        for host in hosts:
            await host.stop()


async def test_a_copy_of_a_running_node_is_refused(manager: Manager, host: AgentHost, tmp_path: Path) -> None:
    host.start()
    await until(lambda: host.heard.sessions == [""])
    copy = AgentHost("n1", tmp_path / "copy", [manager.addr])
    copy.start()
    await until(lambda: any("copy of its state folder" in reason for reason in copy.heard.sessions))
    assert host.heard.sessions == [""]
    await host.kill()
    await until(lambda: "" in copy.heard.sessions)  # only one left: it is the node
    await copy.stop()


async def test_managers_that_name_the_leader_hide_nothing_of_what_it_said(
    manager: Manager, host: AgentHost, tmp_path: Path
) -> None:
    host.start()
    await until(lambda: "" in host.heard.sessions)
    follower = Manager()
    await follower.start()
    follower.leader_addr = manager.addr
    copy = AgentHost("n1", tmp_path / "copy", [follower.addr, manager.addr])
    with capture_logs() as lines:
        copy.start()
        await until(
            lambda: [line["manager"] for line in lines if line["event"] == "session.failed"].count(follower.addr) > 1
        )
    assert "does not lead" in copy.heard.sessions[0]  # nothing else is known yet
    assert copy.heard.sessions[1:]
    assert all("copy of its state folder" in reason for reason in copy.heard.sessions[1:])
    await copy.stop()
    await follower.stop()


def _copied(host: AgentHost, folder: Path, manager: Manager) -> AgentHost:
    """Another machine with the state folder as it is now."""
    shutil.copytree(host.state_dir, folder)
    return AgentHost(host.node_id, folder, [manager.addr])


async def _has_been(host: AgentHost) -> None:
    """It was let in once, and is down."""
    host.start()
    await until(lambda: host.heard.sessions == [""])
    await host.stop()


async def _refused(copy: AgentHost, why: str) -> str:
    """Have it ask; what it is told."""
    copy.start()
    await until(lambda: any(why in reason for reason in copy.heard.sessions))
    assert "" not in copy.heard.sessions
    return copy.heard.sessions[-1]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"id": "two"}, "/etc/machine-id is another one"),
        ({"hardware": "other board"}, "hardware has another ID"),
        ({}, "other MAC addresses"),
    ],
)
async def test_a_copy_does_not_take_the_place_of_a_node_that_is_down(
    manager: Manager, host: AgentHost, tmp_path: Path, facts: dict[str, str], why: str
) -> None:
    if not facts:  # a board whose firmware says nothing
        host.machine = Machine(id="one", links=["bridge", "card"])
    await _has_been(host)
    copy = _copied(host, tmp_path / "copy", manager)
    copy.machine = Machine(id="one", hardware="board") if facts else Machine(id="one", links=["other card"])
    for name, value in facts.items():
        setattr(copy.machine, name, value)
    await _refused(copy, why)
    await copy.stop()
    host.start()  # the node has its place still
    await until(lambda: host.heard.sessions == ["", ""])
    await host.stop()


async def test_an_older_copy_is_refused_on_the_same_kind_of_machine(
    manager: Manager, host: AgentHost, tmp_path: Path
) -> None:
    """A clone that has kept /etc/machine-id, a machine that was set back, a folder from a backup."""
    await _has_been(host)
    copy = _copied(host, tmp_path / "copy", manager)
    host.start()
    await until(lambda: host.heard.sessions == ["", ""])
    await host.kill()
    told = await _refused(copy, "the node has run since this copy of its state folder")
    # An operator says otherwise, for this boot of this machine.
    ((label, code),) = re.findall(r"--label-add (\S+)=(\S+) n1;", told)

    def change(working: Working) -> None:
        node = copy_node(working.nodes.find("n1"))
        node.spec.labels[label] = code
        working.update(node)

    await manager.store.update(change)
    await until(lambda: copy.heard.sessions[-1] == "")
    await copy.stop()
    told = await _refused(AgentHost("n1", host.state_dir, [manager.addr]), "the node has run since")
    assert code not in told


async def test_a_machine_keeps_its_place_over_restarts_kills_and_a_lost_file(manager: Manager, host: AgentHost) -> None:
    for number in range(3):
        host.start()
        await until(lambda number=number: host.heard.sessions == [""] * (number + 1))  # type: ignore[misc]
        await (host.stop() if number % 2 else host.kill())
        host.machine = Machine(
            id="one", hardware="board", links=[f"bridge {number}"]
        )  # hardware that names itself counts
        if number == 1:
            (host.state_dir / "boots").unlink()


async def test_a_manager_takes_its_own_node_for_no_copy_of_itself(
    manager: Manager, host: AgentHost, tmp_path: Path
) -> None:
    """A swarm of one that was moved to another machine, or set back to an earlier day, goes on."""
    await _has_been(host)
    moved = _copied(host, tmp_path / "moved", manager)
    moved.machine = Machine(id="two", hardware="other board")
    manager.here = ("n1", "two")
    moved.start()
    await until(lambda: moved.heard.sessions == [""])
    await moved.stop()


async def test_too_many_registrations_are_refused(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "REGISTRATIONS_WINDOW_S", 3600.0)
    codes: list[grpc.StatusCode | None] = []
    for _ in range(5):
        async with channel_of("n1", manager.addr) as channel:
            call = DispatcherStub(channel).Session()
            await call.write(SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a"))
            try:
                assert isinstance(await call.read(), SessionMessage)
                codes.append(None)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
            call.cancel()
    assert codes == [None, None, None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]


async def test_a_follower_names_the_leader(manager: Manager, tmp_path: Path) -> None:
    follower = Manager()
    await follower.start()
    follower.leader_addr = manager.addr
    host = AgentHost("n1", tmp_path / "n1", [follower.addr])
    host.start()
    await until(lambda: manager.node("n1").status.state == NodeState.NODE_STATE_READY)
    assert host.heard.sessions[0].startswith("FAILED_PRECONDITION")
    await host.stop()
    await follower.stop()


async def test_reports_about_others_tasks_and_backward_steps_change_nothing(manager: Manager) -> None:
    await manager.add(make_node("n2"), make_task("t1", "n1", state=RUNNING), make_task("t2", "n2"))
    async with channel_of("n2", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()

        async def report(task_id: str, state: TaskState.ValueType) -> None:
            await agent.report(TaskStatusUpdate(task_id=task_id, status=TaskStatus(state=state)))

        await report("t1", TaskState.TASK_STATE_FAILED)
        assert manager.task("t1").status.state == RUNNING
        await report("nobody's", RUNNING)
        await report("t2", RUNNING)
        await report("t2", TaskState.TASK_STATE_PREPARING)
        assert manager.task("t2").status.state == RUNNING
        await report("t2", TaskState.TASK_STATE_ORPHANED)
        assert manager.task("t2").status.state == RUNNING
        others = [TaskStatusUpdate(task_id="t1", status=TaskStatus(state=RUNNING))] * 1000
        manager.dispatcher._lines = LogLimit()
        with capture_logs() as lines:
            for _ in range(5):
                await agent.report(*others)
        told = [line for line in lines if line["event"] == "report.passed_over"]
        assert [(line["count"], line["task_id"]) for line in told] == [(1000, "t1")], "and no more for a while"
        agent.call.cancel()


async def test_a_task_that_the_managers_end_is_stopped(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)

    def reject(task: Task) -> None:
        task.status.state = TaskState.TASK_STATE_REJECTED  # as the constraint enforcer does (A7.05)

    await manager.edit("tasks", "t1", reject)
    await until(lambda: "stop" in host.executor.called("t1"))
    assert manager.task("t1").status.state == TaskState.TASK_STATE_REJECTED
