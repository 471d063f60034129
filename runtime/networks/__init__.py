"""Networks of one host: the table of them, the driver port, and the drivers of bridge, host and none."""

from runtime.networks.controller import Networks
from runtime.networks.driver import Driver, Endpoint, Sandbox
from runtime.networks.types import IPAM, IPAMConfig, NetworkContainer, NetworkResource

__all__ = ["IPAM", "Driver", "Endpoint", "IPAMConfig", "NetworkContainer", "NetworkResource", "Networks", "Sandbox"]
