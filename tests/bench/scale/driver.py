"""The bench's end of the process that plays the nodes (``tests.bench.scale.agents``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.multihost.testbed import REPOSITORY
from tests.waiting import wait_until


class Driver:
    """One process with all agents, on a host of its own; ``close`` ends it."""

    def __init__(self, inside: Sequence[str]) -> None:
        """
        Args:
            inside: the command line that enters the driver's host, a Python is appended.
        """
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.bench.scale.agents"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the driver ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def join(self, count: int, addrs: Sequence[str], token: str, grpc_addrs: Sequence[str]) -> dict[str, Any]:
        return self._ask("join", count=count, addrs=addrs, token=token, grpc_addrs=grpc_addrs)

    def state(self) -> dict[str, Any]:
        return self._ask("state")

    def latencies(self) -> dict[str, Any]:
        """Since the last call."""
        return self._ask("latencies")

    def wait_sessions(self, count: int, *, deadline_s: float = 120) -> None:
        """Raises: TimeoutError."""
        wait_until(lambda: self.state()["sessions"] == count, f"{count} sessions", deadline_s=deadline_s)

    def wait_tasks(self, running: int, *, deadline_s: float) -> None:
        """Until the managers know so many tasks to run and no others are left to the nodes. Raises: TimeoutError."""

        def reached() -> bool:
            states: dict[str, int] = self.state()["states"]
            return states.get("RUNNING", 0) == running == sum(states.values()) - states.get("SHUTDOWN", 0)

        wait_until(reached, f"{running} tasks run", deadline_s=deadline_s, step_s=0.05)

    def wait_version(self, service_id: str, version: int, running: int, *, deadline_s: float) -> None:
        """Until so many tasks of a service's version run, and none of another. Raises: TimeoutError."""

        def reached() -> bool:
            found: list[list[Any]] = [entry for entry in self.state()["running"] if entry[0] == service_id]
            return found == [[service_id, version, running]]

        wait_until(reached, f"{running} tasks of version {version} run", deadline_s=deadline_s, step_s=0.05)
