"""Generic resources of a node (A4.09, A7.09): so many of a kind, or a set of named ones of a kind.

Source: swarmkit ``api/genericresource``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from proto.specs_pb2 import DiscreteGenericResource, GenericResource, NamedGenericResource


@dataclass
class GenericPool:
    """What is left of them on one node.

    Attributes:
        named: kind -> names in the node's order.
        discrete: kind -> count.
    """

    named: dict[str, list[str]] = field(default_factory=dict)
    discrete: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Iterable[GenericResource]) -> GenericPool:
        pool = cls()
        for resource in resources:
            if resource.HasField("named"):
                pool.named.setdefault(resource.named.kind, []).append(resource.named.value)
            elif resource.HasField("discrete"):
                kind = resource.discrete.kind
                pool.discrete[kind] = pool.discrete.get(kind, 0) + resource.discrete.value
        return pool

    def copy(self) -> GenericPool:
        return GenericPool({kind: list(names) for kind, names in self.named.items()}, dict(self.discrete))

    def has(self, kind: str, count: int) -> bool:
        if kind in self.discrete:
            return self.discrete[kind] >= count
        return len(self.named.get(kind, ())) >= count

    def holds(self, assigned: GenericResource) -> bool:
        """Whether precisely this is there."""
        if assigned.HasField("named"):
            return assigned.named.value in self.named.get(assigned.named.kind, ())
        return self.discrete.get(assigned.discrete.kind, 0) >= assigned.discrete.value

    def claim(self, kind: str, count: int) -> list[GenericResource]:
        """Take ``count`` of a kind that ``has`` them; returns what a task is assigned."""
        if kind in self.discrete:
            self.discrete[kind] -= count
            return [GenericResource(discrete=DiscreteGenericResource(kind=kind, value=count))]
        names = self.named.get(kind, [])
        taken, self.named[kind] = names[:count], names[count:]
        return [GenericResource(named=NamedGenericResource(kind=kind, value=name)) for name in taken]

    def consume(self, assigned: Iterable[GenericResource]) -> None:
        """Take what a task was assigned earlier; what is not there (any more) is passed over."""
        for resource in assigned:
            if resource.HasField("named"):
                names = self.named.get(resource.named.kind, [])
                if resource.named.value in names:
                    names.remove(resource.named.value)
            elif resource.discrete.kind in self.discrete:
                self.discrete[resource.discrete.kind] -= resource.discrete.value
