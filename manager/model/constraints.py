"""Placement constraints: ``key==value`` and ``key!=value`` on a node's properties.

All constraints of a list must hold. A value is compared whole and without regard to case; a label the node does not
have compares as the empty string, so ``!=`` holds; a key nobody knows never holds, with either operator.

Source: swarmkit ``manager/constraint/constraint.go`` (texts of the errors too); features A7.01, A7.02.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from proto.objects_pb2 import Node
from proto.specs_pb2 import NODE_ROLE_MANAGER

OPERATORS = ("==", "!=")

NODE_LABEL_PREFIX = "node.labels."
ENGINE_LABEL_PREFIX = "engine.labels."

_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)


class ConstraintError(ValueError):
    """A constraint that cannot be read; the message is what the Engine API says."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint.

    Attributes:
        key: as written; compared without regard to case, but for the label's own name in it.
        equal: ``==``, otherwise ``!=``.
        value: as written, stripped.
    """

    key: str
    equal: bool
    value: str


def parse(expressions: Iterable[str]) -> tuple[Constraint, ...]:
    """Read constraints as users write them. Raises: ConstraintError."""
    return tuple(_parse_one(expression) for expression in expressions)


@lru_cache(maxsize=4096)
def parse_cached(expressions: tuple[str, ...]) -> tuple[Constraint, ...]:
    """As ``parse``, for the expressions of stored specs, which come again and again."""
    return parse(expressions)


def node_matches(constraints: Sequence[Constraint], node: Node) -> bool:
    """Whether the node satisfies every constraint."""
    return all(_matches(constraint, node) for constraint in constraints)


def _parse_one(expression: str) -> Constraint:
    for operator in OPERATORS:
        key, found, value = expression.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise ConstraintError(f"key '{key}' is invalid")
        if not _VALUE.fullmatch(value):
            raise ConstraintError(f"value '{value}' is invalid")
        return Constraint(key, operator == "==", value)
    raise ConstraintError(f"constraint expected one operator from {', '.join(OPERATORS)}")


def _matches(constraint: Constraint, node: Node) -> bool:
    if constraint.key.lower() == "node.ip":
        return _matches_address(constraint, node.status.addr)
    actual = _property(constraint.key, node)
    if actual is None:
        return False
    return (actual.casefold() == constraint.value.casefold()) == constraint.equal


def _property(key: str, node: Node) -> str | None:
    """What the node has under that key; None when nobody knows the key."""
    lower = key.lower()
    if lower == "node.id":
        return node.id
    if lower == "node.hostname":
        return node.description.hostname
    if lower == "node.role":
        return "manager" if node.role == NODE_ROLE_MANAGER else "worker"
    if lower == "node.platform.os":
        return node.description.platform.os
    if lower == "node.platform.arch":
        return node.description.platform.architecture
    if lower.startswith(NODE_LABEL_PREFIX) and len(key) > len(NODE_LABEL_PREFIX):
        return node.spec.labels.get(key[len(NODE_LABEL_PREFIX) :], "")
    if lower.startswith(ENGINE_LABEL_PREFIX) and len(key) > len(ENGINE_LABEL_PREFIX):
        return node.description.engine.labels.get(key[len(ENGINE_LABEL_PREFIX) :], "")
    return None


def _matches_address(constraint: Constraint, addr: str) -> bool:
    """``node.ip``: an address or a subnet; anything else never holds."""
    try:
        subnet = ipaddress.ip_network(constraint.value, strict=False)
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(addr)
    except ValueError:
        return not constraint.equal
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (address in subnet) == constraint.equal
