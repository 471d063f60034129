"""The design pages give the figures that are in force (those of agent.md and pki.md: beside the tests of these parts)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from api import server, streams, versions
from api.engine_routes import container_io, images
from manager import constants
from manager.consensus import adapter, changes, commands, compaction, journal, port, proposals, transport, wire
from manager.consensus.settings import SnapshotPolicy, Timing
from manager.control import forward, nodes, service
from manager.dispatcher import (
    assignments,
    attention,
    budget,
    dispatcher,
    heartbeat,
    liveness,
    looking,
    reports,
    rounds,
    suspicion,
    watching,
)
from manager.store import machine, store, watch
from runtime.images import manifests
from runtime.images import transport as registry
from runtime.unpack import room
from worker.membership import manager_process

DOCS = Path(__file__).parents[3] / "docs"
MIB = 1024 * 1024
TIMING, POLICY = Timing(), SnapshotPolicy()


def thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def s(seconds: float) -> str:
    return f"{seconds:g} s"


@pytest.mark.parametrize(
    ("page", "claim"),
    [
        ("api", f"Announced: {versions.MAX_VERSION}, accepted {versions.MIN_VERSION} to {versions.MAX_VERSION}."),
        ("api", f"`VirtualSize` of images up to {images.VIRTUAL_SIZE_UNTIL}"),
        ("api", f"multiplexed streams from {container_io.MULTIPLEXED_SINCE}"),
        ("api", f"`ApiServer.close` waits {s(server.OPERATION_GRACE_S)}"),
        ("api", f"ahead by at most {streams.READ_AHEAD_BYTES_MAX // 1024} KiB"),
        ("api", f"the client gets {s(streams.LINGER_S)} to close its own"),
        ("consensus", f"At most {thousands(adapter.UNAPPLIED_ENTRIES_MAX)} entries"),
        ("consensus", f"or {adapter.UNAPPLIED_BYTES_MAX // MIB} MiB are handed over"),
        ("consensus", f"`propose` waits while {proposals.PENDING_BYTES_MAX // MIB} MiB are on their way"),
        ("consensus", f"stream holds at most {transport.WINDOW_SIZE_BYTES // MIB} MiB"),
        ("consensus", f"One entry is at most {port.ENTRY_SIZE_BYTES_MAX // MIB} MiB"),
        ("consensus", f"a frame {wire.FRAME_SIZE_BYTES_MAX // MIB} MiB"),
        ("consensus", f"at the latest {TIMING.commit_notice_s * 1000:g} ms later"),
        ("consensus", f"every {s(proposals.SWEEP_PERIOD_S)} for those whose time is up"),
        ("consensus", f"Segments roll at {journal.SEGMENT_SIZE_BYTES // MIB} MiB"),
        ("consensus", f"and {compaction.ENTRY_WEIGHT_BYTES} more for each"),
        ("consensus", f"as the state, and at least {POLICY.log_bytes_min // MIB} MiB"),
        ("consensus", f"after {thousands(POLICY.interval_entries)} entries (`SnapshotInterval`)"),
        ("consensus", f"{POLICY.trailing_entries} entries stay behind it"),
        ("consensus", f"{TIMING.election_timeout_s_min} to {TIMING.election_timeout_s_max} s"),
        ("consensus", f"no majority for {s(TIMING.check_quorum_s)} steps down"),
        ("consensus", f"lack at most {changes.CAUGHT_UP_ENTRIES} entries"),
        ("consensus", f"the last {commands.WINDOW_COMMANDS} commands"),
        ("control", f"up to {service.TASKS_PER_REMOVAL} of its tasks"),
        ("control", f"no leader for {s(forward.NO_LEADER_TIMEOUT_S)}"),
        ("control", f"no answer within {s(constants.REQUEST_TIMEOUT_S)}"),
        ("control", f"plus {nodes.REMOVED_GRACE.days} days, counted from the removal"),
        ("control", f"One log entry holds {store.TRANSACTION_OBJECTS_MAX} objects"),
        ("dispatcher", f"the period is {s(constants.HEARTBEAT_PERIOD_S)} by default"),
        ("dispatcher", f"up to {heartbeat.PERIOD_JITTER * 100:g} % of jitter"),
        (
            "dispatcher",
            f"({s(heartbeat.told_period_s(5, 1) * constants.HEARTBEAT_GRACE_FACTOR)}) after a session *ended*",
        ),
        ("dispatcher", f"shows every {s(attention.TICK_S)} that its loop turns"),
        ("dispatcher", f"acknowledged nothing for {s(watching.QUIET_S)}"),
        ("dispatcher", f"{suspicion.NOTICE_PERIODS:g} periods after the last"),
        ("dispatcher", f"{s(liveness.RAFT_HEARING_S)} after a change of leader"),
        ("dispatcher", f"a look again after {s(suspicion.LOOK_AGAIN_S)}"),
        ("dispatcher", f"silence for {s(looking.LOOK_S)}"),
        ("dispatcher", f"attempts begin within {s(looking.ATTEMPTS_S[-1])}"),
        ("dispatcher", f"at most {looking.LOOKS_AT_ONCE_MAX} looks are under way"),
        ("dispatcher", f"none for {suspicion.KNOWN_FOR_S / 60:g} minutes"),
        ("dispatcher", f"of a node within {s(constants.REGISTRATIONS_WINDOW_S)} are refused"),
        ("dispatcher", f"If it answers within {s(dispatcher.PROBE_TIMEOUT_S)}"),
        ("dispatcher", f"cut below {assignments.MESSAGE_SIZE_BYTES_MAX // MIB} MiB"),
        ("dispatcher", f"at most {reports.REPORT_LENGTH_MAX} statuses"),
        ("dispatcher", f"(`rounds`): {rounds.AT_ONCE} sessions"),
        ("dispatcher", f"{s(rounds.PAUSE_S_MAX)} at most. So"),
        ("dispatcher", f"a description counts as {budget.DESCRIPTION_WEIGHT}"),
        ("dispatcher", f"`RESOURCE_EXHAUSTED` after {s(budget.REFUSAL_DELAY_S)}"),
        ("dispatcher", f'"{constants.NODE_UNKNOWN_MESSAGE}"'),
        ("images", f"{room.RESERVE_BYTES // MIB} MB and {thousands(room.RESERVE_FILES)} files"),
        ("images", f"less than {registry.PROGRESS_BYTES // 1024} KiB within a minute"),
        ("images", f"make {manifests.LAYERS_MAX} layers fit"),
        ("store", f"at most {store.TRANSACTION_OBJECTS_MAX} objects and {store.TRANSACTION_SIZE_BYTES_MAX / 1e6:g} MB"),
        ("store", f"the last {machine.TRANSACTION_IDS_KEPT} transactions"),
        ("store", f"A watch holds {thousands(watch.WATCH_CHANGES_MAX)} changes"),
        ("../operations", f"pauses of up to {s(manager_process.RESTART_DELAY_S_MAX)}"),
        ("../operations", f"{constants.NEVER_CAME_NODES_MAX} nodes joined without"),
    ],
)
def test_the_page_gives_the_figure_that_is_in_force(page: str, claim: str) -> None:
    text = " ".join((DOCS / "design" / f"{page}.md").read_text().split())
    assert claim in text


def test_the_budgets_are_those_of_the_page() -> None:
    """What a node may do at once, and what a second later, by trying it."""
    text = (DOCS / "design" / "dispatcher.md").read_text()
    clock = [0.0]
    budgets = budget.Budgets(lambda: clock[0])
    taken: dict[str, Callable[[], bool]] = {
        "calls": lambda: budgets.take_call("n"),
        "complete sets of assignments": lambda: budgets.take_assignments("n"),
        "statuses": lambda: budgets.take_statuses("n", 1),
    }
    for what, take in taken.items():
        clock[0] = 0.0
        at_once = had(take)
        clock[0] = 1.0
        later = had(take)
        shown = thousands(at_once) if at_once >= 10_000 else str(at_once)
        assert f"| {what} | {shown} | {later} |" in text


def had(take: Callable[[], bool]) -> int:
    """How often it is granted before it is refused."""
    count = 0
    while take():
        count += 1
    return count


PAGES = sorted([*(DOCS / "design").glob("*.md"), DOCS / "architecture.md", DOCS / "operations.md"])
PACKAGES = ("api", "base", "cli", "manager", "pki", "proto", "runtime", "worker")
QUOTED = re.compile(r"`([^`\n]+)`")


@cache
def code_files() -> frozenset[str]:
    """Every file of the packages, the tests and the scripts, from the root of the repository."""
    folders = (*PACKAGES, "tests", "scripts", "docs")
    return frozenset(
        str(path.relative_to(DOCS.parent)) for folder in folders for path in (DOCS.parent / folder).rglob("*")
    )


@cache
def words() -> frozenset[str]:
    """Every name in the code."""
    return frozenset(
        word
        for package in PACKAGES
        for suffix in ("*.py", "*.proto")
        for path in (DOCS.parent / package).rglob(suffix)
        for word in re.findall(r"\w+", path.read_text())
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """From the root, or from the folder the page is about: the end of some file's path is what is written."""
    named = {name for name in QUOTED.findall(page.read_text()) if re.fullmatch(r"[\w/.]+\.(py|proto|md)", name)}
    found = {name for name in named if any(f"/{path}".endswith(f"/{name}") for path in code_files())}
    assert named - found == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_quotes_are_in_the_code(page: Path) -> None:
    """Those that begin with a capital, as of classes and RPCs; what is of the outside is listed here."""
    outside = {"DeadlineExceeded", "Unimplemented", "Reachable"}  # codes as Go spells them, a word of docker's
    quoted = QUOTED.findall(page.read_text())
    names = {name.rpartition(".")[2] for name in quoted if re.fullmatch(r"(\w+\.)*[A-Z][A-Za-z]+", name)}
    assert names - words() - outside == set()


PARTS_OF = {
    "agent": "worker/agent",
    "consensus": "manager/consensus",
    "control": "manager/control",
    "dispatcher": "manager/dispatcher",
    "membership": "worker/membership",
    "runtime": "runtime/containers",
    "store": "manager/store",
}


@pytest.mark.parametrize(("page", "folder"), PARTS_OF.items(), ids=PARTS_OF)
def test_a_page_names_every_part_of_what_it_is_about(page: str, folder: str) -> None:
    """By its name alone, as a file, or at the end of a path."""
    quoted = {
        name.removesuffix(".py").rpartition("/")[2]
        for name in QUOTED.findall((DOCS / "design" / f"{page}.md").read_text())
    }
    parts = {path.stem for path in (DOCS.parent / folder).glob("*.py") if path.stem != "__init__"}
    assert parts - quoted == set()


@pytest.mark.parametrize(("page", "folder"), PARTS_OF.items(), ids=PARTS_OF)
def test_what_a_page_lists_as_modules_is_there(page: str, folder: str) -> None:
    """The first column of a table of modules that are named without their folder, each a file or a folder."""
    table = (DOCS / "design" / f"{page}.md").read_text().lower().partition("| module |")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines() for name in QUOTED.findall(row.split("|")[1] if "|" in row else "")}
    bare = {name.rstrip("/") for name in listed if not name.endswith(".py")}
    at = DOCS.parent / folder
    assert bare - {path.stem for path in (*at.iterdir(), *at.parent.iterdir())} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_classes_that_a_page_names_by_their_module_are_in_it(page: Path) -> None:
    named = [
        name.rpartition(".") for name in QUOTED.findall(page.read_text()) if re.fullmatch(r"(\w+\.)+[A-Z]\w+", name)
    ]
    for module, _, name in named:
        if module.partition(".")[0] in PACKAGES:
            source = DOCS.parent / f"{module.replace('.', '/')}.py"
            assert source.is_file(), f"{module}.{name}"
            assert re.search(rf"^class {name}\b", source.read_text(), re.MULTILINE), f"{module}.{name}"
