"""Forgetting a cluster: whatever of it was done when the power went, the rest is seen to be due."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.trees import remove_tree
from pki.certificates import Role
from pki.errors import NodeCertificateMissingError
from pki.node_certificate import NodeCertificate
from proto.node_pb2 import LocalState
from tests.unit.pki.support import Authority
from worker.membership import local_state, state_folder
from worker.membership.state_folder import CERTIFICATES, RAFT, erase


class PowerLoss(BaseException):
    """Ends everything where it is."""


@pytest.fixture
def member(tmp_path: Path) -> Path:
    """The state folder of a manager."""
    NodeCertificate.create(tmp_path / CERTIFICATES, Authority().credentials(Role.MANAGER))
    (tmp_path / RAFT).mkdir()
    local_state.save(tmp_path, LocalState(node_id="n"))
    return tmp_path


def test_nothing_of_the_cluster_stays(member: Path) -> None:
    (member / "engine").mkdir()
    erase(member)
    assert [path.name for path in member.iterdir()] == ["engine"]


@pytest.mark.parametrize("folders", [0, 1, 2])
def test_cut_short_it_can_be_seen_and_finished(member: Path, folders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def remove(path: Path) -> None:
        if len(removed) == folders:
            raise PowerLoss
        removed.append(path.name)
        remove_tree(path)

    with monkeypatch.context() as patch:
        patch.setattr(state_folder, "remove_tree", remove)
        with pytest.raises(PowerLoss):
            erase(member)
    assert local_state.load(member) is None
    assert local_state.is_leave_unfinished(member)
    with pytest.raises(NodeCertificateMissingError):
        NodeCertificate.load(member / CERTIFICATES)
    erase(member)
    assert list(member.iterdir()) == []
