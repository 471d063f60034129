"""A merged stack file to the API's objects. Pure but for the files it names; ``cli.stack.deploy`` talks to the daemon.

Names get the stack's prefix and everything the label ``com.docker.stack.namespace``, as Docker's CLI does (A13.01),
so either command manages the stacks of the other.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from cli.composefile import keys
from cli.composefile.cursor import Cursor
from cli.composefile.source import ManifestError, Source
from cli.stack.model import IMAGE_LABEL, NAMESPACE_LABEL, Context, Object, Stack, read_bytes
from cli.stack.service import service_spec

__all__ = ["IMAGE_LABEL", "NAMESPACE_LABEL", "ManifestError", "Stack", "convert"]

PAYLOAD_BYTES_MAX = {"config": 1000 * 1024, "secret": 500 * 1024}

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_VERSION = re.compile(r"3(\.([0-9]|1[0-3]))?")


def convert(source: Source, name: str, environment: Mapping[str, str]) -> Stack:
    """The stack that a file describes.

    Args:
        environment: where ``environment:`` entries without a value get theirs.

    Raises:
        ManifestError: what is wrong, with file and line.
    """
    root = Cursor(source, (), source.value)
    root.check(keys.TOP)
    version = root.get("version")
    if version and not _VERSION.fullmatch(version.text()):
        raise version.error(f"unsupported Compose file version: {version.text()[:40]}, want 3.0 to 3.13 or none")
    services = list(root.get("services").entries())
    if not services:
        raise ManifestError(f"{source.name}:1: no services")
    for _, network in root.get("networks").entries():
        raise network.error("networks of stacks are not served yet; every task is on its node's bridge")
    stack = Stack(name)
    context = Context(
        stack,
        source.directory,
        {kind: _blobs(root, stack, kind, source.directory, environment) for kind in ("config", "secret")},
        dict(root.get("volumes").entries()),
        environment,
    )
    for volume in context.volumes.values():
        volume.check(keys.VOLUME)
    for key, service in services:
        if not _NAME.fullmatch(key):
            raise service.error("invalid service name: want letters, digits, dots, dashes and underscores")
        stack.services.append(service_spec(context, key, service))
    return stack


def _blobs(root: Cursor, stack: Stack, kind: str, directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Top-level configs or secrets: key to full name; their specs go into ``stack``."""
    names: dict[str, str] = {}
    for key, blob in root.get(f"{kind}s").entries():
        blob.check(keys.BLOB)
        external = blob.get("external")
        if isinstance(external.value, dict) or external.boolean():
            given = external.get("name") if isinstance(external.value, dict) else blob.get("name")
            names[key] = given.text(key)
            stack.external[kind].add(names[key])
            continue
        names[key] = blob.get("name").text(f"{stack.name}_{key}")
        spec: Object = {"Name": names[key], "Labels": stack.labelled(blob.get("labels").text_map())}
        spec["Data"] = base64.b64encode(_payload(blob, kind, directory, environment)).decode()
        if driver := blob.get("template_driver"):
            spec["Templating"] = {"Name": driver.text()}
        (stack.configs if kind == "config" else stack.secrets)[names[key]] = spec
    return names


def _payload(blob: Cursor, kind: str, directory: Path, environment: Mapping[str, str]) -> bytes:
    if content := blob.get("content"):
        return content.text().encode()
    if variable := blob.get("environment"):
        if variable.text() not in environment:
            raise variable.error(f"variable {variable.text()} is not set")
        return environment[variable.text()].encode()
    file = blob.get("file")
    if not file:
        raise blob.error("needs file, content or environment, or external: true")
    most = PAYLOAD_BYTES_MAX[kind]
    data = read_bytes(file, directory, most + 1)
    if len(data) > most:
        raise file.error(f"{kind} data must not be larger than {most} bytes")
    return data
