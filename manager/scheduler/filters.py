"""Which nodes can take a task, and why the others cannot.

The order is swarmkit's (``manager/scheduler/pipeline.go``): a node is held against the first filter it fails. The
texts are those of ``filter.go``; they are what ``docker service ps`` shows (features A6.06).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from manager.model.constraints import node_matches
from manager.model.needs import Needs, normal_architecture
from manager.scheduler.nodes import NodeInfo
from proto.objects_pb2 import NODE_STATE_READY, PluginDescription
from proto.specs_pb2 import NODE_AVAILABILITY_DRAIN, NODE_AVAILABILITY_PAUSE


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on a node.

    Attributes:
        enabled: whether it says anything about tasks of these needs.
        check: whether a node, as loaded as it is, can take one more such task.
        one: what is said when one node fails it.
        many: the same for several, with ``{}`` for their number.
    """

    enabled: Callable[[Needs], bool]
    check: Callable[[Needs, NodeInfo, str], bool]
    one: str
    many: str

    def explain(self, nodes: int) -> str:
        return self.one if nodes == 1 else self.many.format(nodes)


def _ready(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    node = info.node
    return node.status.state == NODE_STATE_READY and node.spec.availability not in (
        NODE_AVAILABILITY_PAUSE,
        NODE_AVAILABILITY_DRAIN,
    )


def _resources(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    return (
        needs.nano_cpus <= info.nano_cpus
        and needs.memory_bytes <= info.memory_bytes
        and all(info.generic.has(kind, count) for kind, count in needs.generic)
    )


def _plugins(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    plugins = info.node.description.engine.plugins
    if not all(_has_plugin(plugins, "Volume", name) for name in needs.volume_plugins):
        return False
    # A node that tells of no log plugin at all is one too old to tell: it is not held against it.
    tells = any(plugin.type == "Log" for plugin in plugins)
    return not needs.log_plugin or not tells or _has_plugin(plugins, "Log", needs.log_plugin)


def _has_plugin(plugins: Iterable[PluginDescription], kind: str, name: str) -> bool:
    return any(plugin.type == kind and plugin.name in (name, f"{name}:latest") for plugin in plugins)


def _constraints(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    return needs.constraints is not None and node_matches(needs.constraints, info.node)


def _platform(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    platform = info.node.description.platform
    architecture = normal_architecture(platform.architecture)
    return any(
        wanted_arch in ("", architecture) and wanted_os in ("", platform.os)
        for wanted_arch, wanted_os in needs.platforms
    )


def _host_ports(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    return not any(info.host_ports.get(port) for port in needs.host_ports)


def _max_replicas(needs: Needs, info: NodeInfo, service_id: str) -> bool:
    return info.active_by_service.get(service_id, 0) < needs.max_replicas


_FILTERS: tuple[Filter, ...] = (
    Filter(
        lambda needs: True,
        _ready,
        "1 node not available for new tasks",
        "{} nodes not available for new tasks",
    ),
    Filter(
        lambda needs: bool(needs.nano_cpus or needs.memory_bytes or needs.generic),
        _resources,
        "insufficient resources on 1 node",
        "insufficient resources on {} nodes",
    ),
    Filter(
        lambda needs: bool(needs.volume_plugins or needs.log_plugin),
        _plugins,
        "missing plugin on 1 node",
        "missing plugin on {} nodes",
    ),
    Filter(
        lambda needs: needs.constraints is None or bool(needs.constraints),
        _constraints,
        "scheduling constraints not satisfied on 1 node",
        "scheduling constraints not satisfied on {} nodes",
    ),
    Filter(
        lambda needs: bool(needs.platforms),
        _platform,
        "unsupported platform on 1 node",
        "unsupported platform on {} nodes",
    ),
    Filter(
        lambda needs: bool(needs.host_ports),
        _host_ports,
        "host-mode port already in use on 1 node",
        "host-mode port already in use on {} nodes",
    ),
    Filter(
        lambda needs: bool(needs.max_replicas),
        _max_replicas,
        "max replicas per node limit exceed",
        "max replicas per node limit exceed",
    ),
)


class Pipeline:
    """The filters that concern one kind of task."""

    def __init__(self, needs: Needs, service_id: str) -> None:
        self._needs = needs
        self._service_id = service_id
        self._filters = tuple(each for each in _FILTERS if each.enabled(needs))

    def fits(self, info: NodeInfo) -> bool:
        """Whether one more such task can go to this node."""
        return all(each.check(self._needs, info, self._service_id) for each in self._filters)

    def explain(self, infos: Iterable[NodeInfo]) -> str:
        """Why none of these nodes can take the task: most frequent reason first; "" when one can or there is none."""
        counts = [0] * len(self._filters)
        for info in infos:
            for position, each in enumerate(self._filters):
                if not each.check(self._needs, info, self._service_id):
                    counts[position] += 1
                    break
        failed = sorted((position for position, count in enumerate(counts) if count), key=lambda p: -counts[p])
        return "; ".join(self._filters[position].explain(counts[position]) for position in failed)
