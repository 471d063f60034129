"""Credentials belong to one registry: what a login was made for decides who is sent it, not what is asked for.

Source: moby ``daemon/containerd/resolver.go`` (``authorizationCredsFromAuthConfig``): a host that is not the login's gets
none of it. Where the login does not say whose it is, it came with an image's name and is that registry's.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from runtime.images.errors import InvalidReferenceError
from runtime.images.reference import DEFAULT_DOMAIN, parse_reference
from runtime.images.types import RegistryAuth

HUB_NAMES = ("", "docker.io", "index.docker.io", "registry-1.docker.io")


def registry_domain(address: str) -> str:
    """``host[:port]`` of what the client calls the registry: a URL, a host, or the old name of the default one."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").netloc.lower()
    except ValueError:  # half an IPv6 address
        return address
    return DEFAULT_DOMAIN if host in HUB_NAMES else host


def is_for(auth: RegistryAuth, domain: str) -> bool:
    """Whether the registry ``domain`` may see ``auth``. One that names no registry is for whom it was given with."""
    return not auth.server_address or registry_domain(auth.server_address) == domain.lower()


def bound_to_image(fields: Mapping[str, object], image: str) -> dict[str, object]:
    """The object in ``X-Registry-Auth`` as it may be kept beside ``image``, whose name may change: it says whose it is.

    What is no reference is for others to refuse: the object stays as it is.
    """
    if any(name.lower() == "serveraddress" and value for name, value in fields.items()):
        return dict(fields)
    try:
        domain = parse_reference(image).domain
    except InvalidReferenceError:
        return dict(fields)
    rest = {name: value for name, value in fields.items() if name.lower() != "serveraddress"}
    return {**rest, "serveraddress": domain}
