"""What of a cluster lies in the state folder, by name, and how it goes (node.json and the marks: ``local_state``)."""

from __future__ import annotations

from pathlib import Path

from base.leftovers import remove_as_a_whole
from base.trees import remove_tree
from pki.node_certificate import forget_key
from worker.membership import local_state
from worker.membership.role_tables import LogState

CERTIFICATES = "certificates"
AGENT = "agent"
RAFT = "raft"
RAFT_REMOVED = "raft.removed"
MANAGER_LOCK = "manager.lock"

MANAGER_SOCKET = "manager.sock"
"""In the run folder, as is the next."""
MANAGER_ERROR = "manager.error"


def log_on_disk(state_dir: Path) -> LogState:
    """What a manager of before left."""
    if (state_dir / RAFT).exists():
        return LogState.WHOLE
    return LogState.ERASING if (state_dir / RAFT_REMOVED).exists() else LogState.NONE


def was_member(state_dir: Path) -> bool:
    """Whether what only a member has lies here. Certificates may be of a join that did not get further."""
    return (state_dir / RAFT).exists() or (state_dir / AGENT).exists()


def discard_log(state_dir: Path) -> None:
    """Remove it as a whole: half of a log would be refused as damaged by the manager of the next promotion.

    Raises: OSError: it is no log any more, or a whole one; what is left of it is to be removed again.
    """
    remove_as_a_whole(state_dir / RAFT, state_dir / RAFT_REMOVED)


def erase(state_dir: Path) -> None:
    """Forget the cluster: certificates, Raft state, assignments. The engine's own state stays.

    A host that loses power in between comes back with a mark by which ``Node.open`` sees that this has to be finished.

    Raises: OSError: something is left, and so is the mark.
    """
    local_state.begin_leave(state_dir)
    forget_key(state_dir / CERTIFICATES)
    for name in (CERTIFICATES, RAFT, RAFT_REMOVED, AGENT):
        remove_tree(state_dir / name)
    local_state.end_leave(state_dir)
