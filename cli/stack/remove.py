"""Taking a stack away: its services, secrets and configs, in this order."""

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
    found = [(kind, entry) for kind in ("service", "secret", "config") for entry in _parts(engine, kind, namespace)]
    if not found:
        sys.stderr.write(f"Nothing found in stack: {namespace.stack}\n")
    done = True
    for kind, entry in found:
        say(f"Removing {kind} {entry['Spec']['Name']}")
        try:
            engine.delete(f"/{kind}s/{entry['ID']}")
        except RefusedError as error:
            sys.stderr.write(f"Failed to remove {kind} {entry['ID']}: {error}\n")
            done = False
    if done and wait:
        _wait_for_end(engine, namespace)
    return done


def _parts(engine: EngineClient, kind: str, namespace: Namespace) -> Sequence[Object]:
    return sorted(of_stack(engine, f"/{kind}s", namespace), key=lambda entry: str(entry["Spec"]["Name"]))


def _wait_for_end(engine: EngineClient, namespace: Namespace) -> None:
    """Until no task of the stack is left that has not ended."""
    while any(
        STATES.get(task["Status"]["State"], 0) <= STATES["running"] for task in of_stack(engine, "/tasks", namespace)
    ):
        time.sleep(POLL_S)
