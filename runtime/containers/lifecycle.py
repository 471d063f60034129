"""The parts that move containers between their states, put together: each is made from those above it."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.containers.bundle import BundleBuilder
from runtime.containers.connecting import Connecting
from runtime.containers.container import Container
from runtime.containers.exec_manager import ExecManager
from runtime.containers.exits import Exits
from runtime.containers.monitors import Monitors
from runtime.containers.naming import Naming
from runtime.containers.readoption import Readoption
from runtime.containers.releasing import Releasing
from runtime.containers.removal import Removal
from runtime.containers.runc import Runc
from runtime.containers.starting import Starting
from runtime.containers.stopping import Stopping
from runtime.containers.store import ContainerStore
from runtime.containers.transitions import Transitions
from runtime.events import EventBus
from runtime.images import ImageStore
from runtime.kernel.syscalls import Watcher
from runtime.networks import Networks
from runtime.resolver.port import Resolver
from runtime.types import EndpointSettings
from runtime.volumes import Volumes


class Lifecycle:
    """One per engine. What it is given stays the caller's, but for ``runc``, which ``close`` closes."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        runc: Runc,
        images: ImageStore,
        networks: Networks,
        resolver: Resolver,
        volumes: Volumes,
        bundles: BundleBuilder,
        events: EventBus,
        capabilities: Sequence[str],
    ) -> None:
        """``capabilities`` are those a privileged exec gets."""
        self._runc = runc
        self._transitions = transitions = Transitions()
        self._monitors = monitors = Monitors(store=store, runc=runc)
        self.naming = naming = Naming(networks, resolver)
        self._releasing = releasing = Releasing(
            store=store, runc=runc, images=images, networks=networks, naming=naming, volumes=volumes
        )
        self.execs = execs = ExecManager(store=store, runc=runc, events=events, capabilities=capabilities)
        self.stopping = stopping = Stopping(store=store, runc=runc, events=events)
        self._connecting = connecting = Connecting(store=store, networks=networks, naming=naming)
        self.removal = removal = Removal(
            store=store,
            images=images,
            networks=networks,
            volumes=volumes,
            stopping=stopping,
            execs=execs,
            transitions=transitions,
            events=events,
        )
        self.starting = starting = Starting(
            store=store,
            images=images,
            networks=networks,
            naming=naming,
            bundles=bundles,
            runc=runc,
            monitors=monitors,
            releasing=releasing,
            removal=removal,
            execs=execs,
            transitions=transitions,
            events=events,
        )
        self._exits = exits = Exits(
            store=store,
            runc=runc,
            monitors=monitors,
            releasing=releasing,
            removal=removal,
            starting=starting,
            execs=execs,
            transitions=transitions,
            events=events,
        )
        self._readoption = Readoption(
            store=store,
            images=images,
            networks=networks,
            naming=naming,
            volumes=volumes,
            runc=runc,
            monitors=monitors,
            execs=execs,
            removal=removal,
            starting=starting,
            exits=exits,
            connecting=connecting,
            transitions=transitions,
        )

    async def open(self, watcher: Watcher) -> None:
        """Follow exits from now on, and settle what happened while nobody did. Store, images and networks are open."""
        await self.removal.finish()
        self._monitors.open(watcher)
        self._exits.open()
        await self._readoption.run()

    async def connect(self, container: Container, network: str, settings: EndpointSettings) -> None:
        """See ``Engine.connect``."""
        work = self._connecting.connect(container, network, settings)
        await self._transitions.to_its_end("connect", container, work)

    async def disconnect(self, container: Container, network: str, *, force: bool) -> None:
        """See ``Engine.disconnect``."""
        work = self._connecting.disconnect(container, network, force=force)
        await self._transitions.to_its_end("disconnect", container, work)

    async def close(self) -> None:
        """What is under way is finished, for at most ten seconds; containers run on. The store stays."""
        await self.execs.close()
        await self._transitions.close()
        await self._exits.close()
        await self._releasing.close()
        await self.removal.close()
        self._monitors.close()
        self._runc.close()
