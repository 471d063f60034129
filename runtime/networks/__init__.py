"""Networks of one host: the table of them, the driver port, and the drivers of bridge, host and none."""

from runtime.network_types import IPAM, IPAMConfig, NetworkContainer, NetworkResource
from runtime.networks.controller import Networks
from runtime.networks.driver import Driver, Endpoint, Sandbox

__all__ = ["IPAM", "Driver", "Endpoint", "IPAMConfig", "NetworkContainer", "NetworkResource", "Networks", "Sandbox"]
