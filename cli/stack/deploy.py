"""Bringing a stack about: networks, secrets and configs, then services; redeploying changes only what changed (A13.01, A13.03)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote

import click

from cli.client import EngineClient, Object, RefusedError
from cli.composefile.model import PayloadKind
from cli.images import name_image, registry_auth
from cli.stack.convert import Stack
from cli.stack.names import IMAGE_LABEL
from cli.stack.objects import of_stack


def deploy(
    engine: EngineClient,
    stack: Stack,
    *,
    prune: bool = False,
    resolve_image: str = "always",
    with_registry_auth: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Create and update everything; return the IDs of the services.

    Args:
        prune: remove services of the stack that the file has no longer.
        resolve_image: pin images to the registry's digest "always", where they "changed", or "never".

    Raises:
        click.ClickException: the daemon refused an object, and what was done before stays; or an external network,
            config or secret is missing.
    """
    existing = {service["Spec"]["Name"]: service for service in of_stack(engine, "/services", stack.namespace)}
    if prune:
        wanted = {spec["Name"] for spec in stack.services}
        for name in sorted(set(existing) - wanted):
            say(f"Removing service {name}")
            engine.delete(f"/services/{existing[name]['ID']}")
    for name in stack.external_networks:
        _check_external(engine, name)
    _make_networks(engine, stack, say)
    kinds: tuple[PayloadKind, PayloadKind] = ("secret", "config")
    ids = {kind: _deploy_payloads(engine, stack, kind, say) for kind in kinds}
    made = []
    for spec in stack.services:
        _refer(spec, ids)
        auth = registry_auth(spec["TaskTemplate"]["ContainerSpec"]["Image"]) if with_registry_auth else {}
        made.append(_deploy_service(engine, spec, existing.get(spec["Name"]), resolve_image, auth, say))
    return made


def _check_external(engine: EngineClient, name: str) -> None:
    """See that it is there, and everywhere. Raises: click.ClickException, in Docker's words."""
    told = f'network "{name}" is declared as external, but '
    try:
        scope = engine.get(f"/networks/{quote(name, safe='')}")["Scope"]
    except RefusedError as error:
        if error.status != 404:
            raise
        raise click.ClickException(
            f"{told}could not be found. You need to create a swarm-scoped network before the stack is deployed"
        ) from error
    if scope != "swarm":
        raise click.ClickException(f'{told}it is not in the right scope: "{scope}" instead of "swarm"')


def _make_networks(engine: EngineClient, stack: Stack, say: Callable[[str], None]) -> None:
    """Those that the stack has not yet; what is there stays as it is, for networks cannot be changed."""
    if not stack.networks:
        return
    existing = {network["Name"] for network in of_stack(engine, "/networks", stack.namespace)}
    for name, body in stack.networks.items():
        if name not in existing:
            say(f"Creating network {name}")
            with _told(f"create network {name}"):
                engine.post("/networks/create", body)


def _deploy_payloads(
    engine: EngineClient, stack: Stack, kind: PayloadKind, say: Callable[[str], None]
) -> dict[str, str]:
    """Name to ID of every secret or config the stack names."""
    specs = stack.payloads(kind)
    if not specs and not stack.external[kind]:
        return {}
    found = {entry["Spec"]["Name"]: entry for entry in engine.list(f"/{kind}s")}
    for name in stack.external[kind]:
        if name not in found:
            raise click.ClickException(f"{kind} not found: {name}: it is external, create it first")
    for name, spec in specs.items():
        entry = found.get(name)
        if entry is None:
            say(f"Creating {kind} {name}")
            with _told(f"create {kind} {name}"):
                found[name] = {"ID": engine.post(f"/{kind}s/create", spec)["ID"]}
        elif (
            kind == "secret"
            or entry["Spec"].get("Data") != spec["Data"]
            or entry["Spec"].get("Labels") != spec["Labels"]
        ):
            with _told(f"update {kind} {name}"):
                engine.post(f"/{kind}s/{entry['ID']}/update", spec, version=entry["Version"]["Index"])
    return {name: entry["ID"] for name, entry in found.items()}


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A refusal names the object: a stack has many."""
    try:
        yield
    except RefusedError as error:
        raise click.ClickException(f"failed to {what}: {error}") from error


def _refer(spec: Object, ids: Mapping[PayloadKind, Mapping[str, str]]) -> None:
    """Put the IDs of configs and secrets beside their names."""
    container = spec["TaskTemplate"]["ContainerSpec"]
    for kind in ids:
        word = kind.capitalize()
        for reference in container.get(f"{word}s", ()):
            reference[f"{word}ID"] = ids[kind][reference[f"{word}Name"]]


def _deploy_service(
    engine: EngineClient,
    spec: Object,
    old: Object | None,
    resolve_image: str,
    auth: dict[str, str],
    say: Callable[[str], None],
) -> str:
    container = spec["TaskTemplate"]["ContainerSpec"]
    if old is None:
        say(f"Creating service {spec['Name']}")
        name_image(engine, spec, resolve=resolve_image != "never")
        with _told(f"create service {spec['Name']}"):
            answer = engine.post("/services/create", spec, headers=auth)
        service_id = str(answer["ID"])
    else:
        service_id = str(old["ID"])
        say(f"Updating service {spec['Name']} (id: {service_id})")
        changed = container["Image"] != (old["Spec"].get("Labels") or {}).get(IMAGE_LABEL)
        if resolve_image == "always" or changed:
            name_image(engine, spec, resolve=resolve_image != "never")
        else:
            # What the last deploy pinned stays, or this one would look like a change.
            container["Image"] = old["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
            if platforms := (old["Spec"]["TaskTemplate"].get("Placement") or {}).get("Platforms"):
                spec["TaskTemplate"].setdefault("Placement", {})["Platforms"] = platforms
        # A redeploy of the same file must not restart tasks: --force of an update in between stays counted.
        spec["TaskTemplate"]["ForceUpdate"] = old["Spec"]["TaskTemplate"].get("ForceUpdate", 0)
        version = old["Version"]["Index"]
        query = {} if auth else {"registryAuthFrom": "spec"}
        with _told(f"update service {spec['Name']}"):
            answer = engine.post(f"/services/{service_id}/update", spec, headers=auth, version=version, **query)
    for warning in (answer or {}).get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")
    return service_id
