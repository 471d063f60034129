"""The networks of a service for ``service create`` and ``update``: names to IDs, which the API keeps and compares.

Source: docker/cli ``cli/command/service/opts.go`` (``ToService``), ``update.go`` (``updateNetworks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # Any: values of the API's JSON
from urllib.parse import quote

import click

from cli.client import EngineClient, RefusedError
from cli.service_spec import Spec

_OF_EVERY_NODE = frozenset({"bridge", "host", "none"})


def change_networks(engine: EngineClient, spec: Spec, added: Sequence[Any], removed: Sequence[str]) -> None:
    """Put the service on networks and take it off others; one that is both is taken off and put on anew.

    Args:
        added: attachments by name, as ``values.network`` reads them.
        removed: names or IDs; one that the service is not on is passed over, as by Docker.

    Raises:
        RefusedError: there is no such network in the swarm.
        click.ClickException: the service is on it already.
    """
    if not added and not removed:
        return
    template = spec["TaskTemplate"]
    gone = {_target(engine, name) for name in removed}
    attachments = template.get("Networks") or spec.get("Networks") or []
    kept = {each["Target"]: each for each in attachments if each["Target"] not in gone}
    for attachment in added:
        target = _target(engine, attachment["Target"])
        if target in kept:
            raise click.ClickException(f"service is already attached to network {attachment['Target']}")
        kept[target] = attachment | {"Target": target}
    template["Networks"] = [kept[target] for target in sorted(kept)]
    spec.pop("Networks", None)  # where API versions before 1.29 have them


def network_names(engine: EngineClient, spec: Spec) -> dict[str, str]:
    """Names by the targets of the service's networks, of those that can be found."""
    names = {}
    for attachment in spec["TaskTemplate"].get("Networks") or ():
        target = attachment["Target"]
        try:
            names[target] = str(_swarm_network(engine, target)["Name"])
        except RefusedError:
            continue
    return names


def _target(engine: EngineClient, name: str) -> str:
    """The ID, or the name of what every node has under an ID of its own."""
    return name if name in _OF_EVERY_NODE else str(_swarm_network(engine, name)["Id"])


def _swarm_network(engine: EngineClient, name: str) -> Any:
    return engine.get(f"/networks/{quote(name, safe='')}", scope="swarm")
