"""The overlays of one node, kept as they should be: what is wanted is told, the kernel is brought to it.

A network has devices here from its first endpoint to its last. A pass brings one network up to date: all of it (what the
kernel has is read and compared) at the first time and after any failure, else what was told since the last pass, so that
one endpoint more costs the same beside ten and beside ten thousand. Nothing is taken away before it is known to be of
nobody: after a restart, entries and rules stay as they are until the cluster has said who is there (``set_peers``,
``set_services``), so traffic goes on though every manager is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import structlog

from base.tasks import OwnedTasks
from runtime.errors import HostError
from runtime.kernel.network import Batch, Change, DeleteLink, IPAddress, KernelNetwork
from worker.network import plan
from worker.network.balances import Balances
from worker.network.passes import Passes
from worker.network.types import BalancedService, DataPath, LocalEndpoint, NetworkID, OverlayNetwork, PeerEndpoint

log = structlog.get_logger(__name__)


class _Overlay:
    """One network: what is wanted of it, what was done, and what is still to do."""

    def __init__(self, network_id: NetworkID, namespace: Path, passes: Passes, balances: Balances) -> None:
        self.id, self.devices = network_id, plan.Devices(str(namespace))
        self.passes = passes
        self.network: OverlayNetwork | None = None
        self.peers: dict[IPAddress, PeerEndpoint] = {}
        self.are_peers_told = False
        self.local: dict[str, LocalEndpoint] = {}
        self.balances = balances
        self.applied: dict[IPAddress, PeerEndpoint] = {}
        """Peers that the kernel has, while ``is_known``."""
        self.touched: set[IPAddress] = set()
        self.is_known = False
        self.is_made = False
        """Whether there may be a namespace."""
        self.lock = asyncio.Lock()
        self.end_watch: Callable[[], None] | None = None


class Overlays:
    """See the module.

    Args:
        run: namespaces are kept below it, in ``overlays``; what is there outlives the daemon and goes with a reboot.
        node: None while this node does not know its own data path; until ``set_node`` all stays as it is.
    """

    def __init__(self, kernel: KernelNetwork, run: Path, node: DataPath | None = None) -> None:
        self._kernel, self._folder, self._node = kernel, run / "overlays", node
        self._overlays: dict[NetworkID, _Overlay] = {}
        self._tasks = OwnedTasks()

    # ---- what is wanted --------------------------------------------------------------------------------------------

    def set_node(self, node: DataPath) -> None:
        """Another data-path address, port or MTU: every device is made anew."""
        if node != self._node:
            self._node = node
            for overlay in self._overlays.values():
                overlay.is_known = False
                overlay.passes.tell()

    def set_network(self, network: OverlayNetwork) -> None:
        """A network there is, or what it is by now."""
        overlay = self._overlay(network.id)
        if overlay.network != network:
            overlay.network, overlay.is_known = network, False
            overlay.passes.tell()

    def forget_network(self, network_id: NetworkID) -> None:
        """There is no such network any more; its devices go with its last endpoint here. Idempotent."""
        if overlay := self._overlays.get(network_id):
            overlay.network, overlay.peers, overlay.are_peers_told = None, {}, False
            overlay.balances.forget()
            overlay.passes.tell()

    def set_peers(self, network_id: NetworkID, peers: Iterable[PeerEndpoint]) -> None:
        """Every endpoint of a network, those of this node among them or not."""
        overlay = self._overlay(network_id)
        wanted = {peer.addresses[0]: peer for peer in peers}
        overlay.touched |= {
            key for key in wanted.keys() | overlay.peers.keys() if wanted.get(key) != overlay.peers.get(key)
        }
        overlay.peers = wanted
        if not overlay.are_peers_told:
            overlay.are_peers_told, overlay.is_known = True, False
        overlay.passes.tell()

    def change_peers(
        self, network_id: NetworkID, changed: Iterable[PeerEndpoint], gone: Iterable[IPAddress] = ()
    ) -> None:
        """Endpoints that are new or elsewhere, and first addresses of those that are no more; the others stay."""
        overlay = self._overlay(network_id)
        for address in gone:  # first, as another may have it now
            overlay.peers.pop(address, None)
            overlay.touched.add(address)
        for peer in changed:
            overlay.peers[peer.addresses[0]] = peer
            overlay.touched.add(peer.addresses[0])
        overlay.passes.tell()

    def set_services(self, network_id: NetworkID, services: Iterable[BalancedService]) -> None:
        """Every service with a virtual IP on a network."""
        overlay = self._overlay(network_id)
        overlay.balances.set(services)
        overlay.passes.tell()

    def change_services(
        self, network_id: NetworkID, changed: Iterable[BalancedService], gone: Iterable[IPAddress] = ()
    ) -> None:
        """Services that are new or have other backends, and virtual IPs that are no more; the others stay."""
        overlay = self._overlay(network_id)
        overlay.balances.change(changed, gone)
        overlay.passes.tell()

    async def settled(self, network_id: NetworkID) -> None:
        """Return once what was told of a network before is in the kernel. As long as that fails, it is tried again."""
        if overlay := self._overlays.get(network_id):
            await overlay.passes.settled()

    def networks_in_use(self) -> Mapping[NetworkID, Collection[LocalEndpoint]]:
        """Networks with endpoints here."""
        return {key: tuple(overlay.local.values()) for key, overlay in self._overlays.items() if overlay.local}

    # ---- endpoints here --------------------------------------------------------------------------------------------

    async def join(self, network_id: NetworkID, endpoint: LocalEndpoint, inside: Collection[Change]) -> None:
        """Give a container its interface, with the network's devices if it is the first here, and the virtual IPs.

        Args:
            inside: what makes the interface usable, in the container's namespace.

        Raises:
            HostError: the network is not known, or the kernel refused; nothing of it is left then.
        """
        overlay = self._overlay(network_id)
        async with overlay.lock:
            if overlay.network is None:
                raise HostError(f"network {network_id} is not known on this node")
            if self._node is None:
                raise HostError("this node has no data-path address yet")
            if overlay.network.encrypted:
                raise HostError(
                    f"network {network_id} is encrypted, and this node cannot encrypt: nothing is sent in clear"
                )
            overlay.local[endpoint.id] = endpoint
            overlay.balances.note_here(endpoint.addresses, here=True)
            try:
                if not overlay.is_known:
                    await self._bring_up(overlay, overlay.network, self._node)
                devices, mtu = overlay.devices, self._node.mtu_of(overlay.network)
                await self._kernel.apply(
                    Batch(
                        (plan.veth(endpoint, mtu, devices), *plan.port_changes(endpoint, devices)), devices.namespace
                    ),
                    Batch(tuple(inside), endpoint.sandbox),
                )
                await overlay.balances.load(self._kernel, endpoint)
            except (OSError, HostError) as error:
                overlay.is_known = False
                with contextlib.suppress(OSError, HostError):
                    await self._take_away(overlay, endpoint)
                overlay.passes.tell()  # the devices go too, if they were made for this one
                if isinstance(error, HostError):
                    raise
                raise HostError(f"failed to set up container networking: {error}") from error
        overlay.passes.tell()  # a service may prefer what is here

    def adopt(self, network_id: NetworkID, endpoint: LocalEndpoint) -> None:
        """Note an endpoint that was joined by a daemon before this one. A pass follows once the network is told."""
        overlay = self._overlay(network_id)
        overlay.local[endpoint.id] = endpoint
        overlay.balances.note_here(endpoint.addresses, here=True)
        overlay.is_known, overlay.is_made = False, True

    async def leave(self, network_id: NetworkID, endpoint: LocalEndpoint) -> None:
        """Take an endpoint away, and the network's devices with the last. Idempotent. Raises HostError."""
        overlay = self._overlay(network_id)
        async with overlay.lock:
            try:
                await self._take_away(overlay, endpoint)
            except OSError as error:
                raise HostError(f"cannot remove link {endpoint.link}: {error}") from error
        overlay.passes.tell()

    async def tidy(self) -> None:
        """After a restart, with every endpoint adopted: networks that nothing here uses go. Raises OSError, HostError."""
        names = await asyncio.to_thread(lambda: [each.name for each in self._folder.glob("*")])
        used = {Path(overlay.devices.namespace).name for overlay in self._overlays.values() if overlay.local}
        for name in set(names) - used:
            await self._drop(str(self._folder / name), plan.Devices("").vxlan)
            log.info("overlay.removed", namespace=name)

    async def close(self) -> None:
        """Stop looking after them: devices and rules stay."""
        await self._tasks.close()
        for overlay in self._overlays.values():
            self._end_watch(overlay)
            overlay.balances.close()

    # ---- passes ----------------------------------------------------------------------------------------------------

    def _overlay(self, network_id: NetworkID) -> _Overlay:
        found = self._overlays.get(network_id)
        if found is None:
            passes = Passes(
                self._tasks,
                lambda: self._pass(self._overlay(network_id)),
                lambda error: self._failed(self._overlay(network_id), error),
                f"overlay {network_id[:12]}",
            )
            balances = Balances(network_id, lambda endpoint: self._suspect(network_id, endpoint))
            found = _Overlay(network_id, self._folder / network_id[:12], passes, balances)
            self._overlays[network_id] = found
        return found

    def _suspect(self, network_id: NetworkID, endpoint: LocalEndpoint) -> None:
        self._tasks.spawn(self._check(self._overlay(network_id), endpoint), name=f"rules of {endpoint.id[:12]}")

    async def _check(self, overlay: _Overlay, endpoint: LocalEndpoint) -> None:
        with contextlib.suppress(OSError, HostError):  # its namespace has gone: so will it
            if endpoint.id in overlay.local and not await overlay.balances.check(self._kernel, endpoint):
                log.warning("overlay.rules_lost", network_id=overlay.id, endpoint_id=endpoint.id)
                overlay.passes.tell()

    def _failed(self, overlay: _Overlay, error: Exception) -> None:
        overlay.is_known = False
        log.warning("overlay.not_applied", network_id=overlay.id, reason=str(error))

    async def _pass(self, overlay: _Overlay) -> None:
        async with overlay.lock:
            if not overlay.local:
                await self._take_down(overlay)
            elif overlay.network is None or self._node is None:  # told of no more, or not yet
                return
            elif overlay.is_known:
                await self._bring_forward(overlay, self._node)
            else:
                await self._bring_up(overlay, overlay.network, self._node)

    async def _bring_up(self, overlay: _Overlay, network: OverlayNetwork, node: DataPath) -> None:
        """All of it: what there is, is read and compared."""
        devices = overlay.devices
        overlay.is_made = overlay.is_known = True  # not at the end: what is heard of meanwhile counts
        await self._kernel.keep_namespace(devices.namespace)
        await self._kernel.set_sysctls(plan.SYSCTLS, devices.namespace)
        self._watch(overlay)
        links = await self._kernel.links(devices.namespace)
        present = plan.Present(links, await self._kernel.vxlan(devices.vxlan, devices.namespace))
        await self._kernel.apply(*plan.device_batches(network, node, devices, present, overlay.local.values()))
        there = (
            present.vxlan if present.vxlan and plan.is_fit(network, node, present.vxlan) else plan.bare(network, node)
        )
        overlay.touched.clear()
        wanted = dict(overlay.peers)
        changes = tuple(
            plan.all_peer_changes(
                node, devices.vxlan, wanted.values(), there, keep_strangers=not overlay.are_peers_told
            )
        )
        await self._kernel.apply(Batch(changes, devices.namespace))
        overlay.applied = wanted
        await overlay.balances.bring_forward(self._kernel, overlay.local.values())
        log.info("overlay.applied", network_id=network.id, vni=network.vni, changes=len(changes), peers=len(wanted))

    async def _bring_forward(self, overlay: _Overlay, node: DataPath) -> None:
        """What was told since the last pass."""
        touched, overlay.touched = overlay.touched, set()
        wanted = {address: overlay.peers.get(address) for address in touched}
        device = overlay.devices.vxlan
        changes = [
            change
            for address, peer in wanted.items()
            for change in plan.peer_changes(node, device, overlay.applied.get(address), peer)
        ]
        if changes:
            await self._kernel.apply(Batch(tuple(changes), overlay.devices.namespace))
        for address, peer in wanted.items():
            if peer is None:
                overlay.applied.pop(address, None)
            else:
                overlay.applied[address] = peer
        await overlay.balances.bring_forward(self._kernel, overlay.local.values())

    async def _take_away(self, overlay: _Overlay, endpoint: LocalEndpoint) -> None:
        overlay.local.pop(endpoint.id, None)
        overlay.balances.note_here(endpoint.addresses, here=False)
        await overlay.balances.unload(self._kernel, endpoint)
        if overlay.is_made and await self._kernel.has_namespace(overlay.devices.namespace):
            await self._kernel.apply(Batch((DeleteLink(endpoint.link),), overlay.devices.namespace))

    async def _take_down(self, overlay: _Overlay) -> None:
        if overlay.is_made:
            self._end_watch(overlay)
            await self._drop(overlay.devices.namespace, overlay.devices.vxlan)
            log.info("overlay.removed", network_id=overlay.id)
        overlay.is_made = overlay.is_known = False
        overlay.applied = {}
        if overlay.network is None:
            self._overlays.pop(overlay.id, None)

    async def _drop(self, namespace: str, vxlan: str) -> None:
        """The device first: its VNI is free at once, whoever may hold the namespace."""
        if await self._kernel.has_namespace(namespace):
            await self._kernel.apply(Batch((DeleteLink(vxlan),), namespace))
        await self._kernel.drop_namespace(namespace)

    def _watch(self, overlay: _Overlay) -> None:
        """Somebody deletes a device: it is made anew."""
        if overlay.end_watch is None:

            def gone(link: str) -> None:
                if link in ("", overlay.devices.bridge, overlay.devices.vxlan):
                    overlay.is_known = False
                    overlay.passes.tell()

            overlay.end_watch = self._kernel.watch_links(gone, overlay.devices.namespace)

    def _end_watch(self, overlay: _Overlay) -> None:
        if overlay.end_watch:
            overlay.end_watch()
            overlay.end_watch = None
