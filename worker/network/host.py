"""The overlays of a host, put together for its daemon: before the engine, which is given their driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.engine import Engine
from runtime.kernel.linux_network import LinuxNetwork
from runtime.network_types import NetworkCreateRequest
from runtime.networks import Driver
from worker.network.driver import WAY_OUT, OverlayDriver
from worker.network.members import ClusterNetworks
from worker.network.overlays import Overlays


class HostOverlays:
    """
    Args:
        run: a folder for what need not outlive a reboot; namespaces are kept below it.
    """

    def __init__(self, run: Path) -> None:
        kernel = LinuxNetwork()
        self._overlays = Overlays(kernel, run)
        self._driver = OverlayDriver(kernel, self._overlays, run)

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
        return ClusterNetworks(engine.networks, self._overlays, engine.resolver)

    async def close(self) -> None:
        """Look after nothing more; devices and rules stay."""
        await self._overlays.close()
