"""Images of services: pinned to a digest through the registry, as Docker's command does it (W09), and credentials."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any  # Any: values of the API's JSON

import click

from base.image_reference import DEFAULT_DOMAIN, InvalidReferenceError, parse_reference
from cli.client import EngineClient, RefusedError, UnreachableError

REGISTRY_TIMEOUT_S = 15.0


def name_image(engine: EngineClient, spec: dict[str, Any], *, resolve: bool) -> None:
    """Write the name of a service's image in the form that Docker's command sends: ``busybox:latest``.

    Args:
        resolve: also put the registry's digest behind it, and the registry's platforms into the placement.

    Where the registry does not answer, the service stays as it is and stderr says what that means.
    """
    container = spec["TaskTemplate"]["ContainerSpec"]
    image = container["Image"]
    container["Image"] = with_tag(image)
    if "@" in image or not resolve:
        return
    try:
        found = engine.get(f"/distribution/{image}/json", timeout_s=REGISTRY_TIMEOUT_S)
        digest = found["Descriptor"]["digest"]
    except (RefusedError, UnreachableError, KeyError, TypeError):
        sys.stderr.write(
            f"image {image} could not be accessed on a registry to record\n"
            "its digest. Each node will access it independently,\n"
            "possibly leading to different nodes running different\n"
            "versions of the image.\n\n"
        )
        return
    container["Image"] += f"@{digest}"
    if platforms := found.get("Platforms"):
        placement = spec["TaskTemplate"].setdefault("Placement", {})
        placement["Platforms"] = [
            {"Architecture": one.get("architecture", ""), "OS": one.get("os", "")} for one in platforms
        ]


def with_tag(image: str) -> str:
    """The reference as users write it, with a tag where it has neither tag nor digest: ``busybox:latest``.

    What cannot be read is left to the daemon to refuse.
    """
    try:
        return parse_reference(image).with_default_tag().familiar
    except InvalidReferenceError:
        return image


def familiar(image: str) -> str:
    """The reference without its digest where it has a tag, without docker.io/library/, as Docker's tables show it."""
    try:
        reference = parse_reference(image)
    except InvalidReferenceError:
        return image
    return reference.with_tag(reference.tag).familiar if reference.tag else reference.familiar


def registry_auth(image: str) -> dict[str, str]:
    """The header with the credentials for an image's registry, from the file that ``docker login`` writes.

    Credential helpers (``credsStore``) are not asked.

    Raises:
        click.ClickException: the file cannot be read.
    """
    directory = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        entries = json.loads((directory / "config.json").read_text()).get("auths") or {}
        found = entries.get(registry_of(image)) or {}
        user, _, password = base64.b64decode(found.get("auth", "")).decode().partition(":")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise click.ClickException(f"{directory / 'config.json'}: cannot be read: {error}") from error
    if not user:
        return {}
    login = {"username": user, "password": password, "serveraddress": registry_of(image)}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login).encode()).decode()}


def registry_of(image: str) -> str:
    """The registry's key in that file: the host of the reference, Docker Hub's address where it names none."""
    try:
        domain = parse_reference(image).domain
    except InvalidReferenceError:
        domain = DEFAULT_DOMAIN
    return "https://index.docker.io/v1/" if domain == DEFAULT_DOMAIN else domain
