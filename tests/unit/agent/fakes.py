"""An executor without containers; it passes ``tests/contract/test_executor.py`` like the real one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from proto.dispatcher_pb2 import AssignmentChange
from proto.objects_pb2 import NetworkAttachment, Secret
from worker.agent.contents import Contents
from worker.agent.executor import Assignment, ContainerPhase, ExecutorError, Health, Observation

_pids = itertools.count(1000)


@dataclass
class Call:
    """One call of the agent, for tests that look at the order of things."""

    method: str
    task_id: str


class FakeExecutor:
    """Containers are rows; a test ends them with ``exit`` and ``set_health``.

    An image named ``missing`` cannot be pulled, a command ``/cannot-start`` cannot be started, one that ends in
    ``exit N`` does so. A second executor made
    with the first one's ``containers`` is the same host after a restart of the daemon.
    """

    def __init__(self, containers: dict[str, Observation] | None = None) -> None:
        self.containers = containers if containers is not None else {}
        self.calls: list[Call] = []
        self.hold_prepare: asyncio.Event | None = None
        self.fail_stop = 0
        self.fail_remove = 0
        self.healthcheck = False
        self.networks_told = 0
        self.starts_now = self.starts_most = 0
        self._callbacks: list[Callable[[str], None]] = []

    # -------------------------------------------------------- Executor

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def observe(self, task_id: str) -> Observation | None:
        return self.containers.get(task_id)

    def task_ids(self) -> Sequence[str]:
        return list(self.containers)

    def replace_networks(self, contents: Contents) -> None:
        self.networks_told += 1

    def change_networks(self, contents: Contents, changes: Sequence[AssignmentChange]) -> None:
        self.networks_told += 1

    async def prepare(self, assignment: Assignment) -> None:
        task_id = assignment.task.id
        self.calls.append(Call("prepare", task_id))
        if self.hold_prepare is not None:
            await self.hold_prepare.wait()
        await asyncio.sleep(0)
        container = assignment.spec_version.spec.task_template.container_spec
        if container.image.startswith("missing"):
            raise ExecutorError(f"No such image: {container.image}")
        for secret in container.secrets:
            if secret.secret_id not in assignment.needed.of(Secret):
                raise ExecutorError(f"secret {secret.secret_name} not found")
        if task_id not in self.containers:
            self._set(Observation(task_id, f"c-{task_id}", ContainerPhase.CREATED))

    async def start(self, assignment: Assignment) -> None:
        task_id = assignment.task.id
        self.calls.append(Call("start", task_id))
        await asyncio.sleep(0)
        found = self.containers.get(task_id)
        if found is None:
            raise ExecutorError("the task's container is gone")
        if found.phase is ContainerPhase.RUNNING:
            return
        command = list(assignment.spec_version.spec.task_template.container_spec.command)
        if command == ["/cannot-start"]:
            raise ExecutorError("starting container failed: no such file")
        self._set(
            msgspec.structs.replace(
                found,
                phase=ContainerPhase.RUNNING,
                pid=next(_pids),
                health=Health.STARTING if self.healthcheck else Health.NONE,
                attachments=(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2/16"]),),
            )
        )
        if command[-1:] and command[-1].startswith("exit "):
            self.exit(task_id, int(command[-1].split()[1]))

    async def stop(self, task_id: str, grace_s: float | None) -> None:
        self.calls.append(Call("stop", task_id))
        await asyncio.sleep(0)
        if self.fail_stop:
            self.fail_stop -= 1
            raise ExecutorError("runc does not answer")
        found = self.containers.get(task_id)
        if found is not None and found.phase is ContainerPhase.RUNNING:
            self.exit(task_id, 137)

    async def remove(self, task_id: str) -> None:
        self.calls.append(Call("remove", task_id))
        await asyncio.sleep(0)
        if self.fail_remove:
            self.fail_remove -= 1
            raise ExecutorError("the container is busy")
        if self.containers.pop(task_id, None) is not None:
            self._tell(task_id)

    async def close(self) -> None:
        pass

    # -------------------------------------------------------- for tests

    def exit(self, task_id: str, exit_code: int = 0) -> None:
        """The process ends."""
        self._set(
            msgspec.structs.replace(self.containers[task_id], phase=ContainerPhase.EXITED, pid=0, exit_code=exit_code)
        )

    def set_health(self, task_id: str, health: Health) -> None:
        """The health check's verdict changes."""
        self._set(msgspec.structs.replace(self.containers[task_id], health=health))

    def called(self, task_id: str) -> list[str]:
        """The methods called for a task, in order."""
        return [call.method for call in self.calls if call.task_id == task_id]

    def _set(self, observation: Observation) -> None:
        self.containers[observation.task_id] = observation
        self._tell(observation.task_id)

    def _tell(self, task_id: str) -> None:
        for callback in tuple(self._callbacks):
            callback(task_id)
