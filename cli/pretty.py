"""``service inspect --pretty``."""

from __future__ import annotations

from typing import Any

from cli import output
from cli.values import duration_text


def pretty_service(found: dict[str, Any]) -> str:
    """The service in Docker's words and order."""
    spec = found["Spec"]
    template, container = spec["TaskTemplate"], spec["TaskTemplate"].get("ContainerSpec", {})
    mode = next(iter(spec["Mode"]), "")
    lines = [f"\nID:\t\t{found['ID']}", f"Name:\t\t{spec['Name']}"]
    if spec.get("Labels"):
        lines += ["Labels:", *(f" {key}={value}" for key, value in sorted(spec["Labels"].items()))]
    lines.append(f"Service Mode:\t{mode}")
    if mode == "Replicated":
        lines.append(f" Number of Replicas:\t{spec['Mode'][mode].get('Replicas', 0)}")
    if (placement := template.get("Placement")) and placement.get("Constraints"):
        lines += ["Placement:", f" Constraints:\t{placement['Constraints']}"]
    if status := found.get("UpdateStatus"):
        lines += [
            "UpdateStatus:",
            f" State:\t\t{status.get('State', '')}",
            f" Started:\t{output.age(status.get('StartedAt', ''))} ago",
        ]
        if status.get("CompletedAt"):
            lines.append(f" Completed:\t{output.age(status['CompletedAt'])} ago")
        lines.append(f" Message:\t{status.get('Message', '')}")
    for key, heading in (("UpdateConfig", "UpdateConfig:"), ("RollbackConfig", "RollbackConfig:")):
        if config := spec.get(key):
            lines += [heading, *_update_lines(config, key.removesuffix("Config"))]
    lines += ["ContainerSpec:", f" Image:\t\t{container.get('Image', '')}"]
    for key, heading in (("Args", "Args"), ("Env", "Env"), ("Dir", "Dir"), ("User", "User")):
        if container.get(key):
            value = container[key]
            lines.append(f" {heading}:\t\t{' '.join(value) if key == 'Args' else value}")
    resources = template.get("Resources") or {}
    if any(resources.get(key) for key in ("Limits", "Reservations")):
        lines.append("Resources:")
        for key in ("Reservations", "Limits"):
            if part := resources.get(key):
                lines.append(f" {key}:")
                lines += [f"  CPU:\t\t{part['NanoCPUs'] / 1e9:g}"] if part.get("NanoCPUs") else []
                lines += [f"  Memory:\t{output.binary_size(part['MemoryBytes'])}"] if part.get("MemoryBytes") else []
    endpoint = found.get("Endpoint") or {}
    if mode_name := (endpoint.get("Spec") or {}).get("Mode"):
        lines.append(f"Endpoint Mode:\t{mode_name}")
    for port in endpoint.get("Ports") or ():
        lines += [
            "Ports:",
            f" PublishedPort = {port.get('PublishedPort', 0)}",
            f"  Protocol = {port['Protocol']}",
            f"  TargetPort = {port['TargetPort']}",
            f"  PublishMode = {port['PublishMode']}",
        ]
    return "\n".join(lines) + "\n"


def _update_lines(config: dict[str, Any], kind: str) -> list[str]:
    lines = [f" Parallelism:\t{config.get('Parallelism', 0)}"]
    if config.get("Delay"):
        lines.append(f" Delay:\t\t{duration_text(config['Delay'])}")
    lines.append(f" On failure:\t{config.get('FailureAction', 'pause')}")
    if config.get("Monitor"):
        lines.append(f" Monitoring Period: {duration_text(config['Monitor'])}")
    lines.append(f" Max failure ratio: {config.get('MaxFailureRatio', 0):g}")
    lines.append(f" {kind} order:      {config.get('Order', 'stop-first')}")
    return lines
