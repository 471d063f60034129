"""Taking a stack away: its services, secrets, configs and networks, in this order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from cli.client import EngineClient, Object, RefusedError
from cli.convergence import STATES
from cli.progress import POLL_S
from cli.stack.names import Namespace
from cli.stack.objects import of_stack


def remove(engine: EngineClient, namespace: Namespace, *, wait: bool, say: Callable[[str], None]) -> bool:
    """Remove one object after the other, whatever the daemon says; what it refuses is told on stderr.

    Args:
        wait: until the tasks have ended, when all was removed.

    Returns:
        Whether the daemon agreed to all.
    """
    kinds = ("service", "secret", "config", "network")
    found = [(kind, *each) for kind in kinds for each in _parts(engine, kind, namespace)]
    if not found:
        sys.stderr.write(f"Nothing found in stack: {namespace.stack}\n")
    done = True
    for kind, name, object_id in found:
        say(f"Removing {kind} {name}")
        try:
            engine.delete(f"/{kind}s/{object_id}")
        except RefusedError as error:
            sys.stderr.write(f"Failed to remove {kind} {object_id}: {error}\n")
            done = False
    if done and wait:
        _wait_for_end(engine, namespace)
    return done


def _parts(engine: EngineClient, kind: str, namespace: Namespace) -> Sequence[tuple[str, str]]:
    """Name and ID of each, by name."""
    return sorted(_named(entry) for entry in of_stack(engine, f"/{kind}s", namespace))


def _named(entry: Object) -> tuple[str, str]:
    """Networks, which are the engine's too, are spelled otherwise."""
    return (entry["Spec"]["Name"], entry["ID"]) if "Spec" in entry else (entry["Name"], entry["Id"])


def _wait_for_end(engine: EngineClient, namespace: Namespace) -> None:
    """Until no task of the stack is left that has not ended."""
    while any(
        STATES.get(task["Status"]["State"], 0) <= STATES["running"] for task in of_stack(engine, "/tasks", namespace)
    ):
        time.sleep(POLL_S)
