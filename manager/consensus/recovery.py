"""From a state folder to a member that can start: lock, verify, connect snapshot and journal, found or join.

Layout: ``lock``, ``journal/``, ``snapshots/``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manager.consensus.configuration import EMPTY, Configuration, ConfigurationLog, new_group
from manager.consensus.files import Files
from manager.consensus.journal import Journal
from manager.consensus.outputs import MEMBERSHIP, NO_OP
from manager.consensus.port import CorruptStateError, IncompleteStateError, Member, NodeID
from manager.consensus.sealed import KeyRing
from manager.consensus.snapshots import SnapshotHead, SnapshotStore


@dataclass(slots=True)
class OpenedState:
    """A verified state folder, held by this process until ``close``.

    Attributes:
        head: of the newest snapshot, or None.
        fresh: there was nothing in the folder.
    """

    journal: Journal
    store: SnapshotStore
    configurations: ConfigurationLog
    head: SnapshotHead | None
    fresh: bool
    unlock: Callable[[], None]

    def close(self) -> None:
        self.journal.close()
        self.unlock()


def open_state(files: Files, folder: Path, keys: KeyRing, node_id: NodeID) -> OpenedState:
    """Open and verify the state in ``folder``.

    Raises:
        CorruptStateError: damaged, incomplete, another node's, or under an unknown key.
        StateLockedError: another process holds it.
        OSError
    """
    files.make_folder(folder)
    unlock = files.lock(folder / "lock")
    journal: Journal | None = None
    try:
        store = SnapshotStore(files, folder / "snapshots", keys)
        store.clean_temporary()
        indexes = store.indexes()
        head = store.verify(indexes[-1]) if indexes else None
        had_journal = "journal" in files.names(folder) and bool(files.names(folder / "journal"))
        if head is not None and not had_journal:
            raise CorruptStateError(f"{folder}/journal: missing, but there is a snapshot: term and vote are lost")
        journal = Journal(files, folder / "journal", keys, node_id)
        fresh = head is None and len(journal) == 0
        _connect(folder, journal, head)
        journal.sync()
        configurations = ConfigurationLog(head.configuration if head else EMPTY)
        configurations.admit(*journal.admission)
        for command, index, _ in journal[:]:
            if command[:1] == MEMBERSHIP and (head is None or index > head.index):
                configurations.add(index, Configuration.decode(command[1:]))
        configurations.end = journal.last_index
    except BaseException:
        if journal is not None:
            journal.close()
        unlock()
        raise
    return OpenedState(journal, store, configurations, head, fresh, unlock)


def _connect(folder: Path, journal: Journal, head: SnapshotHead | None) -> None:
    """Make the log start at or before the snapshot's end, and not empty. Refuses a gap between the two."""
    if head is None:
        if len(journal) == 0:
            journal.add(NO_OP, 1, 0)  # the entry every log of every group begins with
        elif journal.first_index > 1:
            raise CorruptStateError(f"{folder}/snapshots: none, but the journal begins at entry {journal.first_index}")
    elif len(journal) == 0 or head.index > journal.last_index:
        journal.reset(head.index, head.term)  # crashed between installing a snapshot and the journal's reset
    elif head.index < journal.first_index:
        raise CorruptStateError(
            f"{folder}/snapshots: the newest ends at {head.index}, the journal begins at {journal.first_index}"
        )
    elif journal.term_at(head.index) != head.term:
        journal.reset(head.index, head.term)


def found_group(state: OpenedState, member: Member) -> None:
    """Make ``member`` the only member of a new group; durable on return."""
    _append_configuration(state, new_group([member]), term=0)


def force_new_group(state: OpenedState, member: Member) -> None:
    """Keep the state, drop every other member (``--force-new-cluster``); durable on return.

    The whole log becomes the new group's history, entries whose commit was not known included. The group's
    new ID keeps the old members out for good, and by its ancestors they find out. A group that was forced from ours
    before is one of them: who is told to go on with what is here has decided against that one.

    Raises:
        IncompleteStateError: this member was still being sent the state of the group.
    """
    old = state.configurations.current
    if state.configurations.is_history or old == EMPTY:
        raise IncompleteStateError(
            "this manager has not received the whole state of its swarm yet: a new cluster can be forced on another"
        )
    superseded_by = state.journal.superseded_by
    ancestors = (*old.ancestors, old.group_id, *([superseded_by] if superseded_by else ()))
    if superseded_by:
        state.journal.note_superseded("")
    term = max(state.journal.getCurrentTerm(), state.journal[-1][2]) + 1
    state.journal.setCurrentTerm(term, member.node_id)
    _append_configuration(state, new_group([member], ancestors=ancestors), term=term)


def _append_configuration(state: OpenedState, configuration: Configuration, *, term: int) -> None:
    index = state.journal.last_index + 1
    state.journal.add(MEMBERSHIP + configuration.encode(), index, term)
    state.configurations.add(index, configuration)
    state.configurations.end = index
    state.journal.sync()
