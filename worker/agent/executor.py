"""The port between the agent and what runs containers.

Two implementations pass ``tests/contract/test_executor.py``: ``worker.agent.engine_executor.EngineExecutor`` (the
container engine of this host) and ``tests.unit.agent.fakes.FakeExecutor``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from proto.dispatcher_pb2 import AssignmentChange
from proto.objects_pb2 import NetworkAttachment, SpecVersion, Task
from proto.specs_pb2 import PortConfig
from worker.agent.contents import Contents


class ExecutorError(Exception):
    """The host could not do it; the message is shown in ``Status.Err`` of the task."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task with all that running it needs.

    Attributes:
        task: as the manager sent it.
        spec_version: the service's spec that the task names.
        needed: what the managers say the task needs and have sent.
        is_whole: nothing of that is missing (secrets are, after a restart without a manager).
    """

    task: Task
    spec_version: SpecVersion
    needed: Contents = field(default_factory=Contents, repr=False)
    is_whole: bool = True


class ContainerPhase(Enum):
    """Where a task's container is."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class Health(Enum):
    """Verdict of the container's health check; NONE when it has none."""

    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Observation(msgspec.Struct, frozen=True):
    """A task's container as it is now.

    Attributes:
        pid: of its init, in the host's PID namespace; 0 when not running.
        exit_code: of an EXITED one.
        error: the engine's words when the container did not end by itself, such as a failed start.
        ports: host-mode ports with the published port in use.
        attachments: addresses on the node's own networks.
    """

    task_id: str
    container_id: str
    phase: ContainerPhase
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    health: Health = Health.NONE
    ports: Sequence[PortConfig] = ()
    attachments: Sequence[NetworkAttachment] = ()


class Executor(Protocol):
    """Runs one container a task. All methods on one event loop; several tasks at once, one call a task at a time.

    A cancelled ``prepare`` leaves at most a created container behind, which ``remove`` takes away.
    """

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback`` with the task ID whenever the observation of a task may have changed; returns the end of it."""

    def observe(self, task_id: str) -> Observation | None:
        """The task's container, None when there is none."""

    def task_ids(self) -> Sequence[str]:
        """Every task that has a container here, also from before a restart."""

    def replace_networks(self, contents: Contents) -> None:
        """These networks and those who are on them are what the managers say, and no others."""

    def change_networks(self, contents: Contents, changes: Sequence[AssignmentChange]) -> None:
        """What of ``changes``, which are in ``contents``, is of networks and those who are on them, is new."""

    async def prepare(self, assignment: Assignment) -> None:
        """Have the image, the files and a created container. Idempotent.

        Raises:
            ExecutorError: the task is to be rejected; the message says why.
        """

    async def start(self, assignment: Assignment) -> None:
        """Start the prepared container; returns once its process runs. Nothing happens when it runs already.

        Raises:
            ExecutorError: it could not be started.
        """

    async def stop(self, task_id: str, grace_s: float | None) -> None:
        """Stop signal, SIGKILL after ``grace_s`` (None: the engine's default); returns once it ended.

        Nothing happens when it is not running or not there. Raises: ExecutorError, to be tried again later.
        """

    async def remove(self, task_id: str) -> None:
        """Remove the container, killing it if need be, its files and anonymous volumes. Idempotent.

        Raises: ExecutorError, to be tried again later.
        """

    async def close(self) -> None:
        """Let go; containers run on."""
