"""The routing mesh of one node, kept as it should be: what is wanted is told, the kernel is brought to it.

Devices in the host's own namespace (a bridge with the node's ingress address, a VXLAN device as overlays have it), a route for
what is marked, and the tables of ``mesh_rules``. The first pass, and the one after any failure, does all of it; the others what
was told since. Until nodes and ports have been told, what an earlier daemon left goes on working.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec
import structlog

from base.files import read_text, write_atomic
from base.tasks import OwnedTasks
from runtime.kernel.network import (
    AddMarkRule,
    AddRoute,
    Batch,
    DeleteLink,
    DeleteMarkRule,
    FlowPattern,
    KernelNetwork,
    SetNeighbour,
    Translation,
)
from runtime.networks.forwarding import Forwarding
from worker.network import plan
from worker.network.mesh_rules import (
    MARK,
    MARK_MASK,
    NOWHERE,
    ROUTE_TABLE,
    Key,
    MeshPlace,
    MeshRules,
    Spread,
    departures,
    spread_of,
)
from worker.network.passes import Passes
from worker.network.types import DataPath, IngressPort, OverlayNetwork, PeerEndpoint, Subnet

log = structlog.get_logger(__name__)

_NOBODY = "02:42:00:00:00:00"
_EVERYWHERE = IPv4Network("0.0.0.0/0")


class _Wanted(msgspec.Struct):
    """What was told. ``nodes`` is the data-path address of each other node by its ingress address."""

    network: OverlayNetwork
    place: MeshPlace
    nodes: dict[IPv4Address, PeerEndpoint] | None = None
    ports: dict[Key, IngressPort] | None = None


class Mesh:
    """See the module.

    Args:
        run: of the engine; a note of what there are devices of is kept in it, in ``mesh.json``, and goes with a reboot.
        bridge, vxlan, tasks: names of devices, see ``MeshPlace``.
    """

    def __init__(
        self,
        kernel: KernelNetwork,
        run: Path,
        node: DataPath,
        *,
        bridge: str = "swarm-mesh",
        vxlan: str = "swarm-mesh-vx",
        tasks: str = "docker_gwbridge",
    ) -> None:
        self._kernel, self._node, self._names = kernel, node, (bridge, vxlan, tasks)
        self._note, self._is_note_read = run / "mesh.json", False
        self._forwarding = Forwarding(kernel, 4, run / "forwarding")
        self._tasks = OwnedTasks()
        self._passes = Passes(self._tasks, self._pass, self._failed, "mesh")
        self._wanted: _Wanted | None = None
        self._made: MeshPlace | None = None
        """What there may be devices of, by this daemon or, once the note is read, by one before it."""
        self._rules: MeshRules | None = None
        self._touched_ports: set[Key] = set()
        self._touched_nodes: set[IPv4Address] = set()
        self._applied: dict[IPv4Address, PeerEndpoint] = {}
        self._is_known = False
        self._end_watches: list[Callable[[], None]] = []

    # ---- what is wanted --------------------------------------------------------------------------------------------

    def set_node(self, node: DataPath) -> None:
        """Another data-path address, port or MTU: the VXLAN device is made anew."""
        if node != self._node:
            self._node, self._is_known = node, False
            self._passes.tell()

    def set_network(self, network: OverlayNetwork, address: IPv4Address) -> None:
        """The ingress network, and this node's address on it.

        Raises ValueError: its first subnet is no IPv4 network of at most 65534 nodes, or does not have the address.
        """
        subnet = network.subnets[0]
        if not isinstance(subnet.network, IPv4Network) or subnet.network.prefixlen < 16:
            raise ValueError(f"ingress subnet {subnet.network}: want IPv4, /16 or smaller")
        if address not in subnet.network or address == subnet.gateway or not isinstance(subnet.gateway, IPv4Address):
            raise ValueError(f"ingress address {address}: want one of {subnet.network}, not the gateway's")
        bridge, vxlan, tasks = self._names
        place = MeshPlace(address, subnet.network, subnet.gateway, bridge, vxlan, tasks)
        if self._wanted is None or (self._wanted.network, self._wanted.place) != (network, place):
            before = self._wanted
            self._wanted = _Wanted(network, place, before.nodes if before else None, before.ports if before else None)
            self._is_known = False
            self._passes.tell()

    def remove(self) -> None:
        """There is no mesh any more: the ingress network was removed, or the node has left. Idempotent."""
        self._wanted = None
        self._passes.tell()

    def set_nodes(self, nodes: Iterable[PeerEndpoint]) -> None:
        """Every other node: its ingress address and its data-path address. Raises ValueError before ``set_network``."""
        wanted, old = self._told(), self._told().nodes or {}
        new = {address: each for each in nodes if isinstance(address := each.addresses[0], IPv4Address)}
        self._touched_nodes |= {key for key in new.keys() | old.keys() if new.get(key) != old.get(key)}
        self._is_known &= wanted.nodes is not None
        wanted.nodes = new
        self._passes.tell()

    def set_ports(self, ports: Iterable[IngressPort]) -> None:
        """Every port that is published on all nodes. Raises ValueError before ``set_network``."""
        wanted, old = self._told(), self._told().ports or {}
        new = {(each.protocol, each.published): each for each in ports}
        self._touched_ports |= {key for key in new.keys() | old.keys() if new.get(key) != old.get(key)}
        self._is_known &= wanted.ports is not None
        wanted.ports = new
        self._passes.tell()

    def change_ports(self, changed: Iterable[IngressPort], gone: Iterable[Key] = ()) -> None:
        """Ports that are new or lead elsewhere, and those that are no more. Raises ValueError before ``set_ports``."""
        ports = self._told().ports
        if ports is None:
            raise ValueError("the ports of the mesh are not known yet")
        for key in gone:  # first, as another may have it now
            ports.pop(key, None)
            self._touched_ports.add(key)
        for port in changed:
            ports[port.protocol, port.published] = port
            self._touched_ports.add((port.protocol, port.published))
        self._passes.tell()

    async def settled(self) -> None:
        """Return once what was told before is in the kernel. As long as that fails, it is tried again."""
        await self._passes.settled()

    async def close(self) -> None:
        """Stop looking after it: devices and rules stay."""
        await self._tasks.close()
        self._stop_watching()

    def _told(self) -> _Wanted:
        if self._wanted is None:
            raise ValueError("the ingress network is not known yet")
        return self._wanted

    # ---- passes ----------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        self._is_known = False
        log.warning("mesh.not_applied", reason=str(error))

    async def _pass(self) -> None:
        if not self._is_note_read:
            self._made = await asyncio.to_thread(_read, self._note)
            self._is_note_read = True
        wanted = self._wanted
        if wanted is None:
            await self._take_down()
        elif wanted.nodes is None or wanted.ports is None:
            return
        elif self._is_known and self._rules:
            await self._bring_forward(self._rules, wanted)
        else:
            await self._bring_up(wanted)

    async def _bring_up(self, wanted: _Wanted) -> None:
        place, names = wanted.place, {wanted.place.bridge, wanted.place.vxlan}
        if self._made and self._made != place:
            await self._take_down()
        if self._made != place:
            await asyncio.to_thread(write_atomic, self._note, msgspec.json.encode(place, enc_hook=str), durable=False)
        self._made, self._is_known = place, True  # not at the end: what is heard of meanwhile counts
        links = await self._kernel.links()
        present = plan.Present(
            {n: link for n, link in links.items() if n in names}, await self._kernel.vxlan(place.vxlan)
        )
        rules = self._rules = MeshRules(place)
        self._touched_ports, self._touched_nodes = set(wanted.ports or ()), set(wanted.nodes or ())
        self._decide(rules, wanted)
        # Rules first: at no moment does the host forward without them.
        await self._kernel.run_rules(rules.whole() + await self._forwarding.commands_for({place.bridge}))
        await self._kernel.apply(*plan.device_batches(*self._devices(wanted), present, ()))
        there = present.vxlan
        if there is None or not plan.is_fit(wanted.network, self._node, there):
            there = plan.bare(wanted.network, self._node)
        nodes = dict(wanted.nodes or {})
        await self._kernel.apply(
            Batch(
                (
                    SetNeighbour(place.bridge, place.gateway, _NOBODY),
                    AddRoute(_EVERYWHERE, place.bridge, place.gateway, ROUTE_TABLE),
                    AddMarkRule(place.tasks, MARK, MARK_MASK, ROUTE_TABLE),
                    *plan.all_peer_changes(self._node, place.vxlan, nodes.values(), there, keep_strangers=False),
                )
            )
        )
        conf = f"ipv4/conf/{place.bridge}"
        # Sources are clients anywhere: loosely, as the strictest of this and "all" counts.
        await self._kernel.set_sysctls(
            {f"{conf}/rp_filter": "2", f"{conf}/route_localnet": "1", f"{conf}/send_redirects": "0"}
        )
        with contextlib.suppress(
            OSError
        ):  # of a kernel without IPv6; with it, what comes over the mesh could speak to the host
            await self._kernel.set_sysctls(
                {f"ipv6/conf/{each}/disable_ipv6": "1" for each in (place.bridge, place.vxlan)}
            )
        await self._forwarding.switch_on()
        await self._end_strange_flows(rules)
        self._watch(place)
        self._applied = nodes
        log.info("mesh.applied", address=str(place.address), nodes=len(nodes), ports=len(wanted.ports or ()))

    def _devices(self, wanted: _Wanted) -> tuple[OverlayNetwork, DataPath, plan.Devices]:
        """The ingress network as an overlay whose bridge has the node's own address."""
        place = wanted.place
        subnet = Subnet(place.network, place.address)
        network = msgspec.structs.replace(wanted.network, subnets=(subnet,))
        return network, self._node, plan.Devices("", place.bridge, place.vxlan)

    async def _bring_forward(self, rules: MeshRules, wanted: _Wanted) -> None:
        nodes, touched = wanted.nodes or {}, self._touched_nodes
        device = wanted.place.vxlan
        changes = [
            change
            for address in touched
            for change in plan.peer_changes(self._node, device, self._applied.get(address), nodes.get(address))
        ]
        commands, gone = self._decide(rules, wanted)
        if changes:
            await self._kernel.apply(Batch(tuple(changes)))
            self._applied = dict(nodes)
        if commands:
            await self._kernel.run_rules(commands)
        if gone:
            await self._kernel.forget_translations(gone)

    def _decide(self, rules: MeshRules, wanted: _Wanted) -> tuple[str, list[FlowPattern]]:
        ports, nodes = wanted.ports or {}, wanted.nodes or {}
        touched, self._touched_ports = self._touched_ports, set()
        touched_nodes, self._touched_nodes = self._touched_nodes, set()
        spreads: dict[Key, Spread | None] = {}
        gone: list[FlowPattern] = []
        for key in touched:
            before = rules.spread(key)
            spreads[key] = after = spread_of(ports[key], wanted.place, before) if key in ports else None
            gone += departures(key, before, after or NOWHERE)
        come = [node for node in touched_nodes if node in nodes]
        return rules.change(spreads, come, touched_nodes - nodes.keys()), gone

    async def _end_strange_flows(self, rules: MeshRules) -> None:
        """Those that an earlier daemon's rules led where nobody is any more."""
        strange = [pattern for flow in await self._kernel.translations() if (pattern := _strange(flow, rules))]
        if strange:
            await self._kernel.forget_translations(strange)

    async def _take_down(self) -> None:
        place = self._made
        self._stop_watching()
        self._rules, self._is_known, self._applied = None, False, {}
        if place is None:
            return
        await self._kernel.apply(
            Batch(
                (
                    DeleteMarkRule(place.tasks, MARK, MARK_MASK, ROUTE_TABLE),
                    DeleteLink(place.vxlan),
                    DeleteLink(place.bridge),
                )
            )
        )
        await self._forwarding.leave(place.bridge)
        await self._kernel.run_rules(MeshRules(place).removal())
        await asyncio.to_thread(self._note.unlink, missing_ok=True)
        self._made = None
        log.info("mesh.removed")

    # ---- what others do to it --------------------------------------------------------------------------------------

    def _watch(self, place: MeshPlace) -> None:
        if self._end_watches:
            return

        def link_gone(link: str) -> None:
            if link in ("", place.bridge, place.vxlan):
                self._look_again()

        self._end_watches = [self._kernel.watch_links(link_gone), self._kernel.watch_rules(self._check_soon)]

    def _stop_watching(self) -> None:
        for end in self._end_watches:
            end()
        self._end_watches = []

    def _look_again(self) -> None:
        self._is_known = False
        self._passes.tell()

    def _check_soon(self) -> None:
        """Some table went; each replacement of ours and of the bridges' is told of as well."""
        if self._rules and self._is_known:
            self._tasks.spawn(self._check(self._rules), name="rules of the mesh")

    async def _check(self, rules: MeshRules) -> None:
        tables = await self._kernel.tables()
        if self._rules is rules and self._is_known and not tables.issuperset(rules.tables):
            log.warning("mesh.rules_lost")
            self._look_again()


def _read(note: Path) -> MeshPlace | None:
    """A note that nobody can read is as good as none: what is wanted now is put in place over it."""
    text = read_text(note)
    try:
        return msgspec.json.decode(text, type=MeshPlace, dec_hook=lambda kind, value: kind(value)) if text else None
    except (msgspec.DecodeError, ValueError):
        return None


def _strange(flow: Translation, rules: MeshRules) -> FlowPattern | None:
    name = {6: "tcp", 17: "udp", 132: "sctp"}.get(flow.protocol, "")
    known = rules.spread((name, flow.port)).known
    if not known or any(flow.target == address for address, _ in known):
        return None
    return FlowPattern(target=flow.target, protocol=flow.protocol, port=flow.port)
