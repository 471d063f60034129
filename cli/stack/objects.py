"""A stack's objects, as the daemon has them."""

from __future__ import annotations

from cli.client import EngineClient, Object
from cli.stack.names import Namespace


def of_stack(engine: EngineClient, path: str, namespace: Namespace) -> list[Object]:
    """Objects with the stack's label, of a list endpoint such as ``/services``."""
    return engine.list(path, {"label": [namespace.label]})
