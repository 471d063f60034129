"""Nodes: how one is copied, and as decisions about tasks look at them."""

from __future__ import annotations

from proto.objects_pb2 import NODE_STATE_DOWN, Node
from proto.specs_pb2 import NODE_AVAILABILITY_DRAIN


def copy_node(node: Node) -> Node:
    copy = Node()
    copy.CopyFrom(node)
    return copy


def is_node_lost(node: Node | None) -> bool:
    """Whether tasks cannot stay on the node: it is gone, down or drained."""
    return is_node_unreachable(node) or (node is not None and node.spec.availability == NODE_AVAILABILITY_DRAIN)


def is_node_unreachable(node: Node | None) -> bool:
    """Whether nothing on the node will be told to stop: it is gone or down."""
    return node is None or node.status.state == NODE_STATE_DOWN
