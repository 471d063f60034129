"""A Compose file to the API's objects. Pure but for the files it names; ``cli.stack.deploy`` talks to the daemon."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.client import Object
from cli.composefile.files import read_bytes
from cli.composefile.model import ComposeFile, Network, Payload, PayloadKind, Service
from cli.composefile.source import ManifestError
from cli.stack.names import Namespace
from cli.stack.networks import DEFAULT, is_predefined, network_body, network_name
from cli.stack.service import service_spec, unread_warnings

DATA_BYTES_MAX: Mapping[PayloadKind, int] = {"config": 1000 * 1024, "secret": 500 * 1024}

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_VERSION = re.compile(r"3(\.([0-9]|1[0-3]))?")


@dataclass
class Stack:
    """What is to be deployed.

    Attributes:
        services: ServiceSpecs; secret and config references have names and no IDs yet.
        networks: bodies of /networks/create, by name: of those that services are on.
        external_networks: names of those that must be there already, for the whole swarm.
        configs, secrets: specs to create or update, by name.
        external: names of configs and secrets that must be there already.
        warnings: for stderr.
    """

    namespace: Namespace
    services: list[Object] = field(default_factory=list)
    networks: dict[str, Object] = field(default_factory=dict)
    external_networks: list[str] = field(default_factory=list)
    configs: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)
    external: dict[PayloadKind, set[str]] = field(default_factory=lambda: {"config": set(), "secret": set()})
    warnings: list[str] = field(default_factory=list)

    def payloads(self, kind: PayloadKind) -> dict[str, Object]:
        """Specs of configs or of secrets, by name."""
        return self.configs if kind == "config" else self.secrets


def check(file: ComposeFile) -> None:
    """See that a file may be a stack's at all, wherever it is deployed. Raises: ManifestError."""
    if file.version is not None and not _VERSION.fullmatch(file.version):
        place = file.at.inner("version")
        raise place.error(f"unsupported Compose file version: {file.version[:40]}, want 3.0 to 3.13 or none")
    for key, service in file.services.items():
        if not _NAME.fullmatch(key):
            raise service.at.error("invalid service name: want letters, digits, dots, dashes and underscores")
        unread_warnings(service.unread)


def convert(file: ComposeFile, namespace: Namespace) -> Stack:
    """The stack that a file describes.

    Raises:
        ManifestError: what of it a stack cannot have, with file and line.
    """
    check(file)
    if not file.services:
        raise ManifestError(f"{file.at.source.name}:1: no services")
    stack = Stack(namespace)
    kinds: tuple[PayloadKind, PayloadKind] = ("config", "secret")
    names = {
        kind: {key: _payload(stack, kind, key, payload) for key, payload in file.payloads(kind).items()}
        for kind in kinds
    }
    for key, service in file.services.items():
        spec, warnings = service_spec(namespace, key, service, file, names)
        stack.services.append(spec)
        stack.warnings += warnings
    for key in sorted({key for service in file.services.values() for key in _networks_of(service)}):
        _note_network(stack, key, file.networks.get(key))
    return stack


def _networks_of(service: Service) -> list[str]:
    """Keys of the networks a service is on, which is the default one where it says nothing of networks at all."""
    if service.network_mode is not None:
        return []
    return [reference.source for reference in service.networks] or [DEFAULT]


def _note_network(stack: Stack, key: str, network: Network | None) -> None:
    """Note one that services are on; the others of a file are not made, as by Docker's command."""
    name = network_name(stack.namespace, key, network)
    if network is None or not network.external:
        stack.networks[name] = network_body(stack.namespace, name, network)
    elif not is_predefined(name):
        stack.external_networks.append(name)


def _payload(stack: Stack, kind: PayloadKind, key: str, payload: Payload) -> str:
    """Note a config or secret in ``stack``. Returns: its name in the swarm."""
    if payload.external:
        name = key if payload.name is None else payload.name
        stack.external[kind].add(name)
        return name
    name = stack.namespace.scoped(key) if payload.name is None else payload.name
    spec: Object = {"Name": name, "Labels": stack.namespace.labelled(payload.labels)}
    spec["Data"] = base64.b64encode(_data(kind, payload)).decode()
    if payload.template_driver:
        spec["Templating"] = {"Name": payload.template_driver}
    stack.payloads(kind)[name] = spec
    return name


def _data(kind: PayloadKind, payload: Payload) -> bytes:
    if payload.content is not None:
        return payload.content.encode()
    assert payload.file is not None, "a payload that is not external has content or a file"
    most, place = DATA_BYTES_MAX[kind], payload.at.inner("file")
    data = read_bytes(payload.file, place, most + 1)
    if len(data) > most:
        raise place.error(f"{kind} data must not be larger than {most} bytes")
    return data
