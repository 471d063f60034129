"""A container that comes to be on a network, or leaves one, at any time of its life.

Of a container that does not run only the record changes. Of one that runs, what is done at each moment lies between what
its record says and what its state says: ``record.Endpoints`` names no network on which it is not, ``state.Endpoints`` each
on which it may be.

============================================ ============================================
connect                                      disconnect
============================================ ============================================
endpoint reserved (memory)                   record without the network
state with the endpoint                      interface, ports and routes moved or gone
interface, ports and routes there            state without the endpoint
names, /etc/resolv.conf and /etc/hosts       names told to the resolver
record with the network                      endpoint given back (memory)
============================================ ============================================

So a daemon that died in the middle of either left the same thing, an endpoint in the state that the record does not name,
and its successor does the second half of a disconnect (``settle``): nobody was told of a connect that ends so.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.containers import files, links, networking
from runtime.containers.bundle import names_in_hosts
from runtime.containers.container import Container
from runtime.containers.naming import Naming, follow_resolv_conf
from runtime.containers.store import ContainerStore
from runtime.errors import (
    ConflictError,
    EngineError,
    ForbiddenError,
    HostError,
    InvalidParameterError,
    NetworkNotFoundError,
    NotConnectedError,
)
from runtime.networks import Networks, Sandbox
from runtime.networks.ports import PortRequest
from runtime.networks.ports import requests as port_requests
from runtime.types import EndpointSettings


class Connecting:
    """Carries out ``docker network connect`` and ``disconnect``."""

    def __init__(self, *, store: ContainerStore, networks: Networks, naming: Naming) -> None:
        self._store, self._networks, self._naming = store, networks, naming

    async def connect(self, container: Container, network_ref: str, settings: EndpointSettings) -> None:
        """See ``Engine.connect``."""
        async with container.lock:
            _refuse_removed(container)
            network = self._networks.find(network_ref)
            record, wanted, name = container.record, networking.request_of(settings), network.Name
            present = [self._networks.find(other) for other in record.networks() if self._networks.id_of(other)]
            networking.check_connect(record.Config, record.HostConfig, present, network, wanted)
            if name in record.networks():
                if container.running:
                    raise ForbiddenError(f"endpoint with name {record.Name} already exists in network {name}")
                return
            self._networks.reservations.ask(container.id, {name: wanted})
            try:
                if container.running:
                    await self._join(container, name, wanted)
                else:
                    await self._store.set_endpoints(container, {**record.Endpoints, name: wanted})
            except BaseException:
                self._networks.reservations.drop(container.id, name)
                raise
            container.log.info("container.connected", network=name)

    async def disconnect(self, container: Container, network_ref: str, *, force: bool) -> None:
        """See ``Engine.disconnect``."""
        async with container.lock:
            _refuse_removed(container)
            asked = container.record.Endpoints
            name = self._name_of(container, network_ref, force=force)
            if name not in asked:
                raise NotConnectedError(container_id=container.id, network=name)
            if container.running and container.record.HostConfig.NetworkMode == "host" == name:
                raise InvalidParameterError(networking.FROM_HOST)
            await self._store.set_endpoints(container, {other: asked[other] for other in asked if other != name})
            try:
                if container.running:
                    await self._leave(container, name)
            except BaseException:
                await self._store.set_endpoints(container, asked)
                raise
            self._networks.reservations.drop(container.id, name)
            container.log.info("container.disconnected", network=name)

    async def settle(self, container: Container) -> None:
        """Of one that was adopted: take it off networks that its record does not name. Under its lock."""
        for name in set(container.state.Endpoints) - set(container.record.networks()):
            if self._networks.is_way_out(name):
                continue
            try:
                await self._leave(container, name)
            except EngineError as error:
                container.log.error("endpoint.not_removed", network=name, reason=str(error))

    def _name_of(self, container: Container, network_ref: str, *, force: bool) -> str:
        try:
            return self._networks.find(network_ref).Name
        except NetworkNotFoundError:
            if network_ref in container.record.Endpoints and (force or not container.running):
                return network_ref
            raise

    # ---- of one that runs ------------------------------------------------------------------------------------------

    async def _join(self, container: Container, name: str, settings: EndpointSettings) -> None:
        sandbox = await self._networks.extend(container.id, name, settings, _ports(container))
        try:
            self._note_down(container, sandbox, required=True)
            await self._networks.attach(container.id, container.state.Pid)
            wanted = {**container.record.networks(), name: settings}
            await self._naming.tell(container, sandbox.endpoints, container.state.Pid, wanted)
            before = {other: each for other, each in sandbox.endpoints.items() if other != name}
            follow_resolv_conf(container, before, sandbox.endpoints)
            addresses = [str(each.ip) for each in sandbox.endpoints[name].interfaces()]
            self._write_hosts(container, come=addresses)
            await self._store.set_endpoints(container, {**container.record.Endpoints, name: settings})
        except BaseException:
            await self._leave(container, name)
            raise

    async def _leave(self, container: Container, name: str) -> None:
        """Idempotent."""
        endpoint = container.state.Endpoints.get(name)
        sandbox = await self._networks.leave(container.id, name, _ports(container), container.state.Pid)
        self._note_down(container, sandbox, required=False)
        await self._naming.tell_again(container)  # before its address is another's
        await self._networks.give_back(container.id, name)
        addresses = [str(each.ip) for each in endpoint.interfaces()] if endpoint else []
        try:
            self._write_hosts(container, gone=addresses)
            if endpoint:
                follow_resolv_conf(container, {**sandbox.endpoints, name: endpoint}, sandbox.endpoints)
        except HostError as error:  # an address too much, which its next start puts right
            container.log.warning("files.not_written", reason=str(error))
        if spare := self._networks.spare_way_out(container.id):
            await self._leave(container, spare)

    def _write_hosts(self, container: Container, *, come: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        names = names_in_hosts(container)
        files.rewrite(container.folder / "hosts", lambda text: files.changed_hosts(text, names, come=come, gone=gone))
        links.refresh(container, self._store.linking_to(container.id))

    def _note_down(self, container: Container, sandbox: Sandbox, *, required: bool) -> None:
        before, container.state.Endpoints = container.state.Endpoints, dict(sandbox.endpoints)
        try:
            self._store.save_state(container, required=required)
        except HostError:
            container.state.Endpoints = before
            raise


def _refuse_removed(container: Container) -> None:
    if container.removing:
        raise ConflictError(
            f"Container {container.id} is marked for removal and cannot be connected or disconnected to the network"
        )


def _ports(container: Container) -> list[PortRequest]:
    return port_requests(container.record.Config, container.record.HostConfig)
