"""A stack's objects, as the daemon has them."""

from __future__ import annotations

from typing import Any

from cli.client import EngineClient
from cli.stack.names import Namespace


def of_stack(engine: EngineClient, path: str, namespace: Namespace) -> list[dict[str, Any]]:
    """Objects with the stack's label, of a list endpoint such as ``/services``."""
    return engine.list(path, {"label": [namespace.label]})
