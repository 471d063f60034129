"""A merged source to the model. Pure but for the ``env_file`` files that services name."""

from __future__ import annotations

from collections.abc import Mapping

from cli.composefile import keys
from cli.composefile.cursor import Cursor
from cli.composefile.model import ComposeFile, Network, Payload, Volume
from cli.composefile.service import Surroundings, read_service
from cli.composefile.source import Place, Source


def read(source: Source, variables: Mapping[str, str]) -> ComposeFile:
    """What a file says.

    Args:
        variables: where ``environment:`` entries without a value get theirs.

    Raises:
        ManifestError: what is wrong, with file and line.
    """
    root = Cursor(Place(source), source.value)
    root.check(keys.TOP)
    for key, section in root.entries():
        if key in keys.TOP - {"version"} and not section:
            raise section.error("must be a mapping")
    payloads = {
        kind: {key: _payload(payload, source, variables) for key, payload in root.get(f"{kind}s").entries()}
        for kind in ("config", "secret")
    }
    volumes = {key: _volume(volume) for key, volume in root.get("volumes").entries()}
    around = Surroundings(source.directory, variables)
    return ComposeFile(
        at=root.place,
        version=root.get("version").optional_text(),
        services={key: read_service(around, service) for key, service in root.get("services").entries()},
        configs=payloads["config"],
        secrets=payloads["secret"],
        volumes=volumes,
        networks={key: _network(network) for key, network in root.get("networks").entries()},
    )


def _external(thing: Cursor) -> tuple[bool, str | None]:
    """Whether it is there already, and its name: ``external: true`` beside ``name``, or ``external: {name: ...}``."""
    external, name = thing.get("external"), thing.get("name")
    if isinstance(external.value, dict):
        inner = external.get("name")
        if inner and name:
            raise inner.error("conflicts with name: only use name")
        return True, (inner or name).optional_text()
    return external.boolean(), name.optional_text()


def _payload(payload: Cursor, source: Source, variables: Mapping[str, str]) -> Payload:
    payload.check(keys.PAYLOAD)
    external, name = _external(payload)
    content = payload.get("content").optional_text()
    variable, file = payload.get("environment"), payload.get("file")
    if content is None and variable and not external:
        if variable.text() not in variables:
            raise variable.error(f"variable {variable.text()} is not set")
        content = variables[variable.text()]
    if not external and content is None and not file:
        raise payload.error("needs file, content or environment, or external: true")
    return Payload(
        at=payload.place,
        name=name,
        external=external,
        content=content,
        file=source.directory / file.text() if file else None,
        labels=payload.get("labels").text_map(),
        template_driver=payload.get("template_driver").text(),
    )


def _volume(volume: Cursor) -> Volume:
    volume.check(keys.VOLUME)
    external, name = _external(volume)
    for key in ("driver", "driver_opts", "labels"):
        if external and (given := volume.get(key)):
            raise given.error("conflicts with external: what is there already is taken as it is")
    return Volume(
        at=volume.place,
        name=name,
        external=external,
        driver=volume.get("driver").text(),
        driver_opts=volume.get("driver_opts").text_map(),
        labels=volume.get("labels").text_map(),
    )


def _network(network: Cursor) -> Network:
    """What is said beside ``external`` is passed over, as by Docker: files have the driver there."""
    network.check(keys.NETWORK)
    external, name = _external(network)
    ipam = network.get("ipam", keys.IPAM)
    return Network(
        at=network.place,
        name=name,
        external=external,
        driver=network.get("driver").text(),
        driver_opts=network.get("driver_opts").text_map(),
        ipam_driver=ipam.get("driver").text(),
        subnets=[_subnet(config) for config in ipam.get("config").items()],
        internal=network.get("internal").boolean(),
        attachable=network.get("attachable").boolean(),
        labels=network.get("labels").text_map(),
    )


def _subnet(config: Cursor) -> str:
    config.check(keys.IPAM_CONFIG)
    return config.get("subnet").text()
