"""Nodes. Host names need not be unique."""

from __future__ import annotations

from collections.abc import Collection

from manager.store.kinds.kind import Kind
from manager.store.tables import Table
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole


class NodeTable(Table[Node]):
    __slots__ = ()

    def by_role(self, role: NodeRole.ValueType) -> Collection[Node]:
        """Nodes that are of a role, whatever is wanted of them."""
        return self._rows.lookup("role", role)


def _names(node: Node) -> Collection[str]:
    """A node answers to its host name and to the name its spec gives it, if any."""
    return dict.fromkeys(name for name in (node.description.hostname, node.spec.name) if name)


NODES = Kind(
    name="node",
    plural="nodes",
    message=Node,
    names=_names,
    labels=lambda node: node.spec.labels,
    table=NodeTable,
    indexes={"role": lambda node: (node.role,)},
)
