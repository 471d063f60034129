"""The states, steps and rules of ``role_machine``, as tables; those of docs/design/membership.md."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class ProcessState(Enum):
    """The manager process, as far as this daemon has to do with it."""

    STOPPED = "stopped"
    ADRIFT = "adrift"
    """One may run, and nobody keeps it: it outlived a daemon, or its start or stop did not end."""
    STARTING = "starting"
    """Kept, and does not answer (yet, or again)."""
    RUNNING = "running"
    """Kept, and answers."""
    STOPPING = "stopping"


class ProcessChange(Enum):
    """What becomes of the manager process."""

    START_BEGUN = "start begun"
    START_BROKEN = "start broken off"
    ANSWERED = "answers"
    RESTARTED = "ended, kept"
    ENDED = "ended, not kept"
    STOP_BEGUN = "stop begun"
    STOP_BROKEN = "stop broken off"
    STOP_DONE = "stop done"


PROCESS: Mapping[tuple[ProcessState, ProcessChange], ProcessState] = {
    (ProcessState.STOPPED, ProcessChange.START_BEGUN): ProcessState.STARTING,
    (ProcessState.STOPPED, ProcessChange.STOP_BEGUN): ProcessState.STOPPING,
    (ProcessState.ADRIFT, ProcessChange.START_BEGUN): ProcessState.STARTING,
    (ProcessState.ADRIFT, ProcessChange.STOP_BEGUN): ProcessState.STOPPING,
    (ProcessState.STARTING, ProcessChange.ANSWERED): ProcessState.RUNNING,
    (ProcessState.STARTING, ProcessChange.RESTARTED): ProcessState.STARTING,
    (ProcessState.STARTING, ProcessChange.ENDED): ProcessState.ADRIFT,
    (ProcessState.STARTING, ProcessChange.START_BROKEN): ProcessState.ADRIFT,
    (ProcessState.STARTING, ProcessChange.STOP_BEGUN): ProcessState.STOPPING,
    (ProcessState.RUNNING, ProcessChange.ANSWERED): ProcessState.RUNNING,
    (ProcessState.RUNNING, ProcessChange.RESTARTED): ProcessState.STARTING,
    (ProcessState.RUNNING, ProcessChange.ENDED): ProcessState.ADRIFT,
    (ProcessState.RUNNING, ProcessChange.START_BROKEN): ProcessState.ADRIFT,
    (ProcessState.RUNNING, ProcessChange.STOP_BEGUN): ProcessState.STOPPING,
    (ProcessState.STOPPING, ProcessChange.ANSWERED): ProcessState.STOPPING,
    (ProcessState.STOPPING, ProcessChange.ENDED): ProcessState.STOPPING,
    (ProcessState.STOPPING, ProcessChange.STOP_BROKEN): ProcessState.ADRIFT,
    (ProcessState.STOPPING, ProcessChange.STOP_DONE): ProcessState.STOPPED,
}


class LogState(Enum):
    """STATE/raft, what a manager knows of the cluster."""

    NONE = "none"
    WHOLE = "whole"
    ERASING = "being erased"
    """Begun and not known to be done."""


class Step(Enum):
    """What is to be done next."""

    RENEW = "renew the certificate"
    WRITE_MANAGER = "write down manager"
    WRITE_WORKER = "write down worker"
    START = "start the manager"
    STOP = "stop the manager"
    ERASE_LOG = "erase the log"
    REST = "rest"
    ASK_OWN_MANAGER = "ask the own manager out"
    ASK_PEERS = "ask the other managers"
    STOP_TASKS = "stop the tasks"
    FORGET = "forget the cluster"


class Condition(Enum):
    """What has to be true for a step."""

    MEMBER = "not ending"
    ENDING = "ending"
    MANAGERS_CERTIFICATE = "a manager's certificate that counts"
    NOT_KEPT = "process stopped or adrift"
    STOPPED = "process stopped"
    RUNNING = "process running"
    LOG_NOT_HALF = "log not being erased"


REQUIRES: Mapping[Step, frozenset[Condition]] = {
    Step.RENEW: frozenset({Condition.MEMBER}),
    Step.WRITE_MANAGER: frozenset({Condition.MEMBER, Condition.MANAGERS_CERTIFICATE}),
    Step.WRITE_WORKER: frozenset({Condition.MEMBER, Condition.STOPPED}),
    Step.START: frozenset(
        {Condition.MEMBER, Condition.MANAGERS_CERTIFICATE, Condition.NOT_KEPT, Condition.LOG_NOT_HALF}
    ),
    Step.STOP: frozenset(),
    Step.ERASE_LOG: frozenset({Condition.MEMBER, Condition.STOPPED}),
    Step.REST: frozenset({Condition.MEMBER}),
    Step.ASK_OWN_MANAGER: frozenset({Condition.ENDING, Condition.RUNNING}),
    Step.ASK_PEERS: frozenset({Condition.ENDING, Condition.STOPPED}),
    Step.STOP_TASKS: frozenset({Condition.ENDING, Condition.STOPPED}),
    Step.FORGET: frozenset({Condition.ENDING, Condition.STOPPED}),
}


class Ending(Enum):
    """How a participation ends."""

    LEAVE = "leave"
    ABANDON = "abandon"
    """An init or a join that failed."""
    CLOSE = "close"
    """The daemon ends; the node stays a member."""


ENDINGS: Mapping[Ending, tuple[Step, ...]] = {
    Ending.LEAVE: (Step.ASK_OWN_MANAGER, Step.STOP, Step.ASK_PEERS, Step.STOP_TASKS, Step.FORGET),
    Ending.ABANDON: (Step.STOP, Step.ASK_PEERS, Step.FORGET),
    Ending.CLOSE: (Step.STOP,),
}
"""In this order. The own manager is asked if it answers, the others if it did not and this is a manager."""

MAY_FAIL = frozenset({Step.ASK_OWN_MANAGER, Step.ASK_PEERS, Step.STOP_TASKS})
"""Of an ending: it goes on without. The others are tried again when it is asked for again."""
