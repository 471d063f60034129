"""Bringing a stack about: secrets and configs, then services; redeploying changes only what changed (A13.01, A13.03)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli.client import Engine
from cli.stack.convert import NAMESPACE_LABEL, Stack


def of_stack(engine: Engine, path: str, stack: str, **params: Any) -> list[dict[str, Any]]:
    """Objects with the stack's label."""
    return engine.list(path, {"label": [f"{NAMESPACE_LABEL}={stack}"]}, **params)


def deploy(engine: Engine, stack: Stack, *, prune: bool, say: Callable[[str], None]) -> list[str]:
    """Create and update everything; return the IDs of the services.

    Raises:
        EngineError: the daemon refused; what was done before stays.
        click.ClickException: an external config or secret is missing.
    """
    ids = {kind: _deploy_blobs(engine, stack, kind, say) for kind in ("secret", "config")}
    existing = {service["Spec"]["Name"]: service for service in of_stack(engine, "/services", stack.name)}
    if prune:
        wanted = {spec["Name"] for spec in stack.services}
        for name, service in existing.items():
            if name not in wanted:
                say(f"Removing service {name}")
                engine.delete(f"/services/{service['ID']}")
    return [_deploy_service(engine, spec, existing, ids, say) for spec in stack.services]


def _deploy_blobs(engine: Engine, stack: Stack, kind: str, say: Callable[[str], None]) -> dict[str, str]:
    """Name to ID of every secret or config the stack names."""
    specs = stack.secrets if kind == "secret" else stack.configs
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
            found[name] = {"ID": engine.post(f"/{kind}s/create", spec)["ID"]}
        elif (
            kind == "secret"
            or entry["Spec"].get("Data") != spec["Data"]
            or entry["Spec"].get("Labels") != spec["Labels"]
        ):
            engine.post(f"/{kind}s/{entry['ID']}/update", spec, version=entry["Version"]["Index"])
    return {name: entry["ID"] for name, entry in found.items()}


def _deploy_service(
    engine: Engine,
    spec: dict[str, Any],
    existing: dict[str, dict[str, Any]],
    ids: dict[str, dict[str, str]],
    say: Callable[[str], None],
) -> str:
    container = spec["TaskTemplate"]["ContainerSpec"]
    for kind in ("secret", "config"):
        for reference in container.get(f"{kind.capitalize()}s", ()):
            reference[f"{kind.capitalize()}ID"] = ids[kind][reference[f"{kind.capitalize()}Name"]]
    old = existing.get(spec["Name"])
    if old is None:
        say(f"Creating service {spec['Name']}")
        return str(engine.post("/services/create", spec)["ID"])
    say(f"Updating service {spec['Name']} (id: {old['ID']})")
    # A redeploy of the same file must not restart tasks: --force of an update in between stays counted.
    spec["TaskTemplate"]["ForceUpdate"] = old["Spec"]["TaskTemplate"].get("ForceUpdate", 0)
    engine.post(f"/services/{old['ID']}/update", spec, version=old["Version"]["Index"])
    return str(old["ID"])
