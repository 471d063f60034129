"""What a participation is made of, as far as it needs to know: tests put others in their place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec

from pki.node_certificate import NodeCertificate, utc_now
from pki.renewal import Renew, Renewer
from proto.node_pb2 import ManagerConfig
from worker.agent.agent import Agent
from worker.membership.manager_process import ManagerProcess
from worker.membership.zygote import Zygote

OnExit = Callable[[ManagerConfig], ManagerConfig | None]


class AgentPart(Protocol):
    """See ``worker.agent.agent.Agent``."""

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    async def leave(self) -> None: ...


class RenewerPart(Protocol):
    """See ``pki.renewal.Renewer``."""

    async def run(self) -> None: ...

    def renew_now(self) -> None: ...

    async def renew_once(self) -> None: ...

    async def wait_valid(self) -> None: ...


class ProcessPart(Protocol):
    """See ``worker.membership.manager_process.ManagerProcess``."""

    @property
    def running(self) -> bool: ...

    async def start(self, config: ManagerConfig) -> None: ...

    async def stop(self) -> None: ...

    async def wait_running(self) -> None: ...

    async def wait_ended(self) -> None: ...


def _process(zygote: Zygote, lock_path: Path, on_exit: OnExit) -> ProcessPart:
    return ManagerProcess(zygote, lock_path, on_exit=on_exit)


class ParticipationParts(msgspec.Struct, frozen=True):
    """
    Attributes:
        agent: called with the arguments of ``Agent``.
        renewer: given the certificate and how to ask for another.
        process: given the zygote, STATE/manager.lock and what to do when a manager ends by itself.
        clock: aware time.
        role_retry_s: until a step of a change of role that failed is tried again.
        expired_retry_s: until a manager whose certificate has run out is asked again for another.
        restart_delay_s_min: until a part that failed is begun again; it doubles, to 30 s.
    """

    agent: Callable[..., AgentPart] = Agent
    renewer: Callable[[NodeCertificate, Renew], RenewerPart] = Renewer
    process: Callable[[Zygote, Path, OnExit], ProcessPart] = _process
    clock: Callable[[], datetime] = utc_now
    role_retry_s: float = 1.0
    expired_retry_s: float = 5.0
    restart_delay_s_min: float = 0.5
