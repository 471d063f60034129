"""Constraints: every operator and key (features A7.01, A7.02)."""

from __future__ import annotations

import pytest

from manager.model.constraints import ConstraintError, node_matches, parse
from proto.objects_pb2 import Node
from proto.specs_pb2 import NODE_ROLE_MANAGER


def node() -> Node:
    made = Node(id="abc123", role=NODE_ROLE_MANAGER)
    made.status.addr = "10.1.2.3"
    made.description.hostname = "Host-1"
    made.description.platform.os = "linux"
    made.description.platform.architecture = "x86_64"
    made.description.engine.labels["storage"] = "ssd"
    made.spec.labels["Zone"] = "Eu-1"
    return made


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("node.id==abc123", True),
        ("node.id == ABC123", True),
        ("node.id!=abc123", False),
        ("NODE.HOSTNAME==host-1", True),
        ("node.hostname==host", False),
        ("node.role==manager", True),
        ("node.role!=worker", True),
        ("node.platform.os==linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", False),
        ("node.labels.Zone==eu-1", True),
        ("node.labels.zone==eu-1", False),
        ("node.labels.zone!=eu-1", True),
        ("node.labels.missing!=x", True),
        ("engine.labels.storage==SSD", True),
        ("engine.labels.other==ssd", False),
        ("node.ip==10.1.2.3", True),
        ("node.ip!=10.1.2.3", False),
        ("node.ip==10.0.0.0/8", True),
        ("node.ip!=192.168.0.0/16", True),
        ("node.ip==nonsense", False),
        ("node.ip!=nonsense", False),
        ("node.unknown==x", False),
        ("node.unknown!=x", False),
        ("node.labels.==x", False),
    ],
)
def test_one_constraint(expression: str, holds: bool) -> None:
    assert node_matches(parse([expression]), node()) is holds


def test_all_must_hold() -> None:
    assert node_matches(parse(["node.role==manager", "node.ip==10.1.2.3"]), node())
    assert not node_matches(parse(["node.role==manager", "node.ip==10.1.2.4"]), node())
    assert node_matches((), node())


def test_a_node_without_a_description() -> None:
    assert not node_matches(parse(["node.hostname==x"]), Node(id="n"))
    assert node_matches(parse(["node.hostname!=x"]), Node(id="n"))
    assert node_matches(parse(["node.ip!=10.0.0.1"]), Node(id="n"))
    assert not node_matches(parse(["node.ip==10.0.0.1"]), Node(id="n"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("node.id", "constraint expected one operator from ==, !="),
        ("node.id=x", "constraint expected one operator from ==, !="),
        ("node.id>=5", "constraint expected one operator from ==, !="),
        ("==x", "key '' is invalid"),
        ("no/de==x", "key 'no/de' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==<x>", "value '<x>' is invalid"),
    ],
)
def test_what_cannot_be_read_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ConstraintError) as refusal:
        parse([expression])
    assert str(refusal.value) == message
