"""Where a registry is and whether plain HTTP is allowed there. Pure.

Source: moby ``registry/config.go`` and ``service_v2.go``: HTTPS everywhere; loopback and the registries that the
operator named may have an unknown certificate or speak HTTP; mirrors are tried first and only for docker.io.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from runtime.images.errors import InvalidArgumentError
from runtime.images.reference import DEFAULT_DOMAIN

_PORTS = {"http": 80, "https": 443}
DOCKER_HUB_URL = "https://registry-1.docker.io"


class Endpoint(msgspec.Struct, frozen=True):
    """One base URL to try, without a slash at the end.

    Attributes:
        domain: the registry that it stands for.
        verify: whether the certificate has to be valid.
        mirror: the caller's credentials are for the registry itself and are not sent here.
    """

    url: str
    domain: str = ""
    verify: bool = True
    mirror: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def is_origin_of(self, url: str) -> bool:
        """Whether ``url`` leads to this very server: the same scheme, host and port."""
        try:
            return _origin(url) == _origin(self.url)
        except ValueError:
            return False


def endpoints_of(domain: str, *, insecure: Sequence[str], mirrors: Sequence[str]) -> list[Endpoint]:
    """Endpoints of a registry in the order to try them."""
    if domain == DEFAULT_DOMAIN:
        found = []
        for mirror in mirrors:
            url = check_mirror(mirror)
            found.append(Endpoint(url, domain, verify=not is_insecure(urlsplit(url).netloc, insecure), mirror=True))
        return [*found, Endpoint(DOCKER_HUB_URL, domain)]
    if is_insecure(domain, insecure):
        return [Endpoint(f"{scheme}://{domain}", domain, verify=False) for scheme in ("https", "http")]
    return [Endpoint(f"https://{domain}", domain)]


def _origin(url: str) -> tuple[str, str, int | None]:
    """Raises ValueError for what has no port that could be."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def check_mirror(url: str) -> str:
    """Normalised base URL of a mirror. Raises InvalidArgumentError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise InvalidArgumentError(f'invalid mirror: "{url}" must be a URL such as https://mirror.example')
    return url.rstrip("/")


def is_insecure(domain: str, insecure: Sequence[str]) -> bool:
    """Whether ``domain`` (``host[:port]``) is loopback, or named by ``insecure`` (hosts with or without port, CIDRs)."""
    try:
        host = (urlsplit(f"//{domain}").hostname or "").lower()
    except ValueError:
        return False
    if host == "localhost" or domain.lower() in (entry.lower() for entry in insecure) or host in insecure:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    return any(_contains(entry, address) for entry in insecure if "/" in entry)


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise InvalidArgumentError(f"insecure registry {network} is not a network such as 10.0.0.0/8") from None
