"""What a node keeps on disk is the old or the new after power loss at any instant, never a mixture, never an error."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pki.certificates import Role
from pki.encryption import DataKeys, ensure_data_keys, load_data_keys, new_unlock_key, save_data_keys
from pki.errors import LockedError, NodeCertificateMissingError
from pki.node_certificate import NodeCertificate, NodeCredentials
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind
from proto.node_pb2 import LocalState
from tests.unit.dispatcher.support import make_task
from tests.unit.pki.support import Authority
from tests.unit.worker.power import lose_power_everywhere
from worker.agent.contents import Contents, change_of
from worker.agent.persistence import FILE_NAME, AssignmentFile
from worker.membership import local_state
from worker.membership.state_folder import AGENT, CERTIFICATES, RAFT, erase

OLD, NEW = LocalState(node_id="n", cluster_id="old"), LocalState(node_id="n", cluster_id="new" * 400)
CLUSTER = Authority()
OTHER_ROOT = Authority(cluster_id=CLUSTER.cluster_id)
FIRST = CLUSTER.credentials(Role.WORKER, node_id="n")
RENEWED = CLUSTER.credentials(Role.MANAGER, node_id="n")
BY_OTHER_ROOT = OTHER_ROOT.credentials(Role.MANAGER, node_id="n")


def nothing(_folder: Path) -> None:
    pass


# The tool itself


@pytest.mark.parametrize("forgotten", ["nothing", "sync of the file", "sync of the folder", "rename"])
def test_what_is_forgotten_is_found_out(tmp_path: Path, forgotten: str) -> None:
    def act(folder: Path) -> None:
        temporary = folder / ("x" if forgotten == "rename" else ".x")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, b"new")
        if forgotten != "sync of the file":
            os.fsync(descriptor)
        os.close(descriptor)
        temporary.replace(folder / "x")
        if forgotten != "sync of the folder":
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def check(folder: Path, done: bool) -> None:
        data = (folder / "x").read_bytes() if (folder / "x").exists() else b""
        assert data == b"new" or (data == b"old" and not done)

    def prepare(folder: Path) -> None:
        (folder / "x").write_bytes(b"old")

    if forgotten == "nothing":
        assert lose_power_everywhere(tmp_path, prepare=prepare, act=act, check=check) == 5
    else:
        with pytest.raises(AssertionError, match="assert"):
            lose_power_everywhere(tmp_path, prepare=prepare, act=act, check=check)


# node.json


def loaded(*wanted: LocalState | None) -> Callable[[Path, bool], None]:
    """The last of ``wanted`` once done, any of them before."""

    def check(folder: Path, done: bool) -> None:
        assert local_state.load(folder) in (wanted[-1:] if done else wanted)

    return check


def test_node_json_is_written(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        local_state.save(folder, NEW)

    assert lose_power_everywhere(tmp_path, prepare=nothing, act=save, check=loaded(None, NEW))


def test_node_json_is_replaced(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        local_state.save(folder, OLD)

    def save(folder: Path) -> None:
        local_state.save(folder, NEW)

    assert lose_power_everywhere(tmp_path, prepare=prepare, act=save, check=loaded(OLD, NEW))


# Certificates


def certificate(*wanted: NodeCredentials | None, kek: bytes | None = None) -> Callable[[Path, bool], None]:
    """A pair of ``wanted``, verified by the roots beside it; the last of them once done. ``kek`` may be needed."""

    def check(folder: Path, done: bool) -> None:
        try:
            found = NodeCertificate.load(folder / CERTIFICATES)
        except NodeCertificateMissingError:
            assert None in wanted
            assert not done
            return
        except LockedError:
            found = NodeCertificate.load(folder / CERTIFICATES, kek)
        pairs = [(one.key_pem, one.chain_pem) for one in wanted if one is not None]
        assert (found.current.key_pem, found.current.chain_pem) in pairs
        if done:
            assert found.current == wanted[-1]
        else:  # it can be gone on with
            found.replace(RENEWED)
            assert NodeCertificate.load(folder / CERTIFICATES, kek).current == RENEWED

    return check


def hold_first(folder: Path) -> None:
    NodeCertificate.create(folder / CERTIFICATES, FIRST)


def test_the_first_certificate_is_written(tmp_path: Path) -> None:
    assert lose_power_everywhere(tmp_path, prepare=nothing, act=hold_first, check=certificate(None, FIRST))


@pytest.mark.parametrize("new", [RENEWED, BY_OTHER_ROOT], ids=["same root", "other root"])
def test_a_certificate_is_renewed(tmp_path: Path, new: NodeCredentials) -> None:
    def renew(folder: Path) -> None:
        NodeCertificate.load(folder / CERTIFICATES).replace(new)

    assert lose_power_everywhere(tmp_path, prepare=hold_first, act=renew, check=certificate(FIRST, new))


def test_roots_are_replaced(tmp_path: Path) -> None:
    bundle = CLUSTER.root.certificate_pem + OTHER_ROOT.root.certificate_pem

    def replace(folder: Path) -> None:
        NodeCertificate.load(folder / CERTIFICATES).replace_root(bundle)

    def check(folder: Path, done: bool) -> None:
        root = NodeCertificate.load(folder / CERTIFICATES).current.root.pem
        assert root == bundle or (root == FIRST.root.pem and not done)

    assert lose_power_everywhere(tmp_path, prepare=hold_first, act=replace, check=check)


def test_the_unlock_key_is_changed(tmp_path: Path) -> None:
    kek = new_unlock_key()

    def lock(folder: Path) -> None:
        NodeCertificate.load(folder / CERTIFICATES).change_unlock_key(kek)

    assert lose_power_everywhere(tmp_path, prepare=hold_first, act=lock, check=certificate(FIRST, kek=kek))


def test_the_data_key_is_made_and_replaced(tmp_path: Path) -> None:
    """What the log is written under is durable before it is used, and is never gone again."""
    used: list[DataKeys] = []

    def make(folder: Path) -> None:
        used.append(ensure_data_keys(folder / CERTIFICATES))

    def made(folder: Path, done: bool) -> None:
        assert not done or load_data_keys(folder / CERTIFICATES) == used[-1]
        ensure_data_keys(folder / CERTIFICATES)

    (tmp_path / "made").mkdir()
    assert lose_power_everywhere(tmp_path / "made", prepare=hold_first, act=make, check=made)

    old, new = DataKeys.new(), DataKeys.new()

    def hold(folder: Path) -> None:
        save_data_keys(folder, old)

    def replace(folder: Path) -> None:
        save_data_keys(folder, new)

    def replaced(folder: Path, done: bool) -> None:
        assert load_data_keys(folder) in ([new] if done else [old, new])

    (tmp_path / "replaced").mkdir()
    assert lose_power_everywhere(tmp_path / "replaced", prepare=hold, act=replace, check=replaced)


# Assignments


def put(file: AssignmentFile, *task_ids: str) -> None:
    file.put_changes([change_of(make_task(task_id, "n")) for task_id in task_ids])


def hold_tasks(folder: Path) -> None:
    """t1 and t2, as an agent of before left them."""
    file = AssignmentFile(folder, "n")
    file.load()
    put(file, "t1", "t2")
    assert asyncio.run(file.flush())


def tasks(folder: Path) -> set[str]:
    return set(AssignmentFile(folder, "n").load()[0].tasks)


def assigned(*wanted: set[str]) -> Callable[[Path, bool], None]:
    """The last of ``wanted`` once done, any before; and more can be written."""

    def check(folder: Path, done: bool) -> None:
        assert tasks(folder) in (wanted[-1:] if done else wanted)
        file = AssignmentFile(folder, "n")
        before = set(file.load()[0].tasks)
        put(file, "later")
        assert asyncio.run(file.flush())
        assert tasks(folder) == before | {"later"}

    return check


def test_the_first_assignments_are_written(tmp_path: Path) -> None:
    assert lose_power_everywhere(tmp_path, prepare=nothing, act=hold_tasks, check=assigned(set(), {"t1", "t2"}))


def test_changes_of_assignments_are_appended(tmp_path: Path) -> None:
    """Each change is there or not, in their order."""

    def change(folder: Path) -> None:
        file = AssignmentFile(folder, "n")
        file.load()
        put(file, "t3")
        file.put_changes([AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_TASK, id="t1")])
        assert asyncio.run(file.flush())

    wanted = [{"t1", "t2"}, {"t1", "t2", "t3"}, {"t2", "t3"}]
    assert lose_power_everywhere(tmp_path, prepare=hold_tasks, act=change, check=assigned(*wanted))


def test_assignments_are_written_anew(tmp_path: Path) -> None:
    def tear(folder: Path) -> None:
        hold_tasks(folder)
        with (folder / FILE_NAME).open("ab") as file:
            file.write(b"torn")

    def replace(folder: Path) -> None:
        file = AssignmentFile(folder, "n")
        file.load()
        file.replace(Contents(make_task("t3", "n")))
        assert asyncio.run(file.flush())

    assert lose_power_everywhere(tmp_path, prepare=tear, act=replace, check=assigned({"t1", "t2"}, {"t3"}))


def test_assignments_are_forgotten(tmp_path: Path) -> None:
    def clear(folder: Path) -> None:
        file = AssignmentFile(folder, "n")
        file.load()
        file.clear()

    assert lose_power_everywhere(tmp_path, prepare=hold_tasks, act=clear, check=assigned({"t1", "t2"}, set()))


# All of it


def be_manager(folder: Path) -> None:
    """The state folder of a manager, and what the engine keeps beside it."""
    NodeCertificate.create(folder / CERTIFICATES, RENEWED)
    ensure_data_keys(folder / CERTIFICATES)
    for name in (RAFT, AGENT, "engine"):
        (folder / name).mkdir()
        (folder / name / "file").write_bytes(b"kept")
    local_state.save(folder, OLD)


def test_a_cluster_is_forgotten_or_the_node_is_wholly_in_it(tmp_path: Path) -> None:
    """Or it can be seen that the rest is due (``worker.membership.node.Node.open``)."""

    def check(folder: Path, done: bool) -> None:
        if local_state.is_leave_unfinished(folder):
            assert not done
            assert local_state.load(folder) is None
            erase(folder)
        if local_state.load(folder) is None:
            assert {path.name for path in folder.iterdir()} == {"engine"}
            return
        assert not done
        assert NodeCertificate.load(folder / CERTIFICATES).current == RENEWED
        load_data_keys(folder / CERTIFICATES)
        for name in (RAFT, AGENT, "engine"):
            assert (folder / name / "file").read_bytes() == b"kept"

    assert lose_power_everywhere(tmp_path, prepare=be_manager, act=erase, check=check)


def test_an_init_is_there_once_it_is_answered_and_else_seen_to_be_unfinished(tmp_path: Path) -> None:
    def init(folder: Path) -> None:
        local_state.begin_init(folder)
        NodeCertificate.create(folder / CERTIFICATES, RENEWED)
        ensure_data_keys(folder / CERTIFICATES)
        local_state.save(folder, OLD)
        local_state.end_init(folder)

    def check(folder: Path, done: bool) -> None:
        names = {path.name for path in folder.iterdir() if not path.match(".init.unfinished.*.tmp")}
        if local_state.is_init_unfinished(folder):
            assert not done
        elif done or names:
            assert local_state.load(folder) == OLD
            assert NodeCertificate.load(folder / CERTIFICATES).current == RENEWED
            load_data_keys(folder / CERTIFICATES)

    assert lose_power_everywhere(tmp_path, prepare=nothing, act=init, check=check)
