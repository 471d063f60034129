"""The overlays of a host, put together for its daemon: before the engine, which is given their driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.engine import Engine
from runtime.kernel.linux_network import LinuxNetwork
from runtime.network_types import NetworkCreateRequest
from runtime.networks import Driver
from runtime.types import TASK_ID_LABEL
from worker.network.driver import WAY_OUT, OverlayDriver
from worker.network.members import ClusterNetworks
from worker.network.mesh import Mesh
from worker.network.overlays import Overlays
from worker.network.published import Published


class HostOverlays:
    """
    Args:
        run: a folder for what need not outlive a reboot; namespaces are kept below it.
    """

    def __init__(self, run: Path) -> None:
        self._kernel, self._run = LinuxNetwork(), run
        self._overlays = Overlays(self._kernel, run)
        self._driver = OverlayDriver(self._kernel, self._overlays, run)

    @property
    def drivers(self) -> list[Driver]:
        """What the engine makes such networks by."""
        return [self._driver]

    @property
    def ways_out(self) -> Mapping[str, NetworkCreateRequest]:
        """See ``Networks``."""
        return {self._driver.name: WAY_OUT}

    async def open(self) -> None:
        """Once the engine is open: what is of nobody goes. Raises OSError, HostError."""
        await self._driver.tidy()

    def networks_of(self, engine: Engine) -> ClusterNetworks:
        """The cluster's networks on this node."""

        def address_of(task_id: str) -> str:
            found = engine.list({"label": [f"{TASK_ID_LABEL}={task_id}"]})
            if not found:
                return ""
            endpoint = engine.inspect(found[0].Id).NetworkSettings.Networks.get(WAY_OUT.Name)
            return endpoint.IPAddress if endpoint is not None else ""

        published = Published(lambda node: Mesh(self._kernel, self._run / "engine", node), address_of)
        return ClusterNetworks(engine.networks, self._overlays, engine.resolver, published)

    async def close(self) -> None:
        """Look after nothing more; devices and rules stay."""
        await self._overlays.close()
