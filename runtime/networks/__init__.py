"""Networks of one host: the default bridge, host and none; another container's is the engine's affair."""

from runtime.networks.bridge import Attachment, Networks
from runtime.networks.types import IPAM, IPAMConfig, NetworkContainer, NetworkResource

__all__ = ["IPAM", "Attachment", "IPAMConfig", "NetworkContainer", "NetworkResource", "Networks"]
