"""``service inspect --pretty``: the service in Docker's words, order and white space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # Any: values of the API's JSON

from cli import output
from cli.values import duration_text

Object = Mapping[str, Any]


def pretty_service(found: Object, networks: Mapping[str, str]) -> str:
    """The text for one service of the API; ``networks`` are names by target."""
    spec = found["Spec"]
    template = spec["TaskTemplate"]
    container = template.get("ContainerSpec") or {}
    lines = ["", f"ID:\t\t{found['ID']}", f"Name:\t\t{spec['Name']}"]
    lines += _section("Labels:", [f" {key}{f'={value}' if value else ''}" for key, value in _sorted(spec, "Labels")])
    mode = next(iter(spec["Mode"]), "")
    lines.append(f"Service Mode:\t{mode}")
    if replicas := (spec["Mode"].get("Replicated") or {}).get("Replicas"):
        lines.append(f" Replicas:\t{replicas}")
    lines += _update_status(found.get("UpdateStatus") or {})
    lines += _placement(template.get("Placement") or {})
    for kind in ("Update", "Rollback"):
        lines += _update_config(spec.get(f"{kind}Config"), kind)
    lines += _container(container)
    lines += _log_driver(template.get("LogDriver"))
    lines += _resources(template.get("Resources"))
    if template.get("Networks"):
        names = (networks.get(network["Target"], network["Target"]) for network in template["Networks"])
        lines.append(f"Networks: {' '.join(names)} ")
    lines.append(f"Endpoint Mode:\t{(spec.get('EndpointSpec') or {}).get('Mode', '')}")
    text = "\n".join(lines) + _ports((found.get("Endpoint") or {}).get("Ports") or ())
    return text + _health(container.get("Healthcheck"))


def _sorted(value: Object, key: str) -> list[tuple[str, Any]]:
    return sorted((value.get(key) or {}).items())


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, *lines] if lines else []


def _update_status(status: Object) -> list[str]:
    if not status:
        return []
    lines = ["UpdateStatus:", f" State:\t\t{status.get('State', '')}"]
    if status.get("StartedAt"):
        lines.append(f" Started:\t{output.age(status['StartedAt'])} ago")
    if status.get("State") == "completed" and status.get("CompletedAt"):
        lines.append(f" Completed:\t{output.age(status['CompletedAt'])} ago")
    return [*lines, f" Message:\t{status.get('Message', '')}"]


def _placement(placement: Object) -> list[str]:
    lines = ["Placement:"]
    if placement.get("Constraints"):
        lines.append(f" Constraints:\t[{' '.join(placement['Constraints'])}]")
    spreads = [f"spread={one['Spread']['SpreadDescriptor']}" for one in placement.get("Preferences") or ()]
    if spreads:
        lines.append(f" Preferences:   [{' '.join(spreads)}]")
    if placement.get("MaxReplicas"):
        lines.append(f" Max Replicas Per Node:   {placement['MaxReplicas']}")
    return lines


def _update_config(config: Object | None, kind: str) -> list[str]:
    if config is None:
        return []
    lines = [f"{kind}Config:", f" Parallelism:\t{config.get('Parallelism', 0)}"]
    if config.get("Delay"):
        lines.append(f" Delay:\t\t{duration_text(config['Delay'])}")
    lines.append(f" On failure:\t{config.get('FailureAction', '')}")
    if config.get("Monitor"):
        lines.append(f" Monitoring Period: {duration_text(config['Monitor'])}")
    lines.append(f" Max failure ratio: {config.get('MaxFailureRatio', 0):g}")
    return [*lines, f" {f'{kind} order:':<18} {config.get('Order', '')}"]


def _container(container: Object) -> list[str]:
    lines = ["ContainerSpec:", f" Image:\t\t{container.get('Image', '')}"]
    lines += [
        f" {key}:\t\t{''.join(f'{word} ' for word in container[key])}" for key in ("Args", "Env") if container.get(key)
    ]
    if container.get("Dir"):
        lines.append(f" Dir:\t\t{container['Dir']}")
    if container.get("Init") is not None:
        lines.append(f" Init:\t\t{str(container['Init']).lower()}")
    if container.get("User"):
        lines.append(f" User: {container['User']}")
    capabilities = [
        f" {word}: {', '.join(container[key])}"
        for word, key in (("Add", "CapabilityAdd"), ("Drop", "CapabilityDrop"))
        if container.get(key)
    ]
    lines += _section("Capabilities:", capabilities)
    sysctls = [f" {key}{f': {value}' if value else ''}" for key, value in _sorted(container, "Sysctls")]
    lines += _section("SysCtls:", sysctls)
    ulimits = [f" {limit['Name']}: {limit.get('Soft', 0)}:{limit.get('Hard', 0)}" for limit in _ulimits(container)]
    lines += _section("Ulimits:", ulimits)
    mounts = [line for mount in container.get("Mounts") or () for line in _mount(mount)]
    lines += _section("Mounts:", mounts)
    for kind in ("Config", "Secret"):
        files = [
            line
            for one in container.get(f"{kind}s") or ()
            for line in (f" Target:\t{(one.get('File') or {}).get('Name', '')}", f"  Source:\t{one[f'{kind}Name']}")
        ]
        lines += _section(f"{kind}s:", files)
    return lines


def _ulimits(container: Object) -> list[Object]:
    return sorted(container.get("Ulimits") or (), key=lambda limit: str(limit["Name"]))


def _mount(mount: Object) -> list[str]:
    return [
        f" Target:\t{mount.get('Target', '')}",
        f"  Source:\t{mount.get('Source', '')}",
        f"  ReadOnly:\t{str(bool(mount.get('ReadOnly'))).lower()}",
        f"  Type:\t\t{mount.get('Type', '')}",
    ]


def _log_driver(driver: Object | None) -> list[str]:
    if driver is None:
        return []
    lines = ["Log Driver:"]
    if driver.get("Name"):
        lines.append(f" Name:\t\t{driver['Name']}")
    options = [f"  {key}{f':       {value}' if value else ''}" for key, value in _sorted(driver, "Options")]
    # The blank line is Docker's own.
    return [*lines, *_section(" LogOpts:", options), ""]


def _resources(resources: Object | None) -> list[str]:
    if resources is None:
        return []
    lines = ["Resources:"]
    for key in ("Reservations", "Limits"):
        part = resources.get(key) or {}
        cpus, memory, pids = part.get("NanoCPUs", 0), part.get("MemoryBytes", 0), part.get("Pids", 0)
        if not cpus and not memory and not pids:
            continue
        lines.append(f" {key}:")
        lines += [f"  CPU:\t\t{cpus / 1e9:g}"] if cpus else []
        lines += [f"  Memory:\t{output.binary_size(memory)}"] if memory else []
        lines += [f"  PIDs:\t\t{pids}"] if pids else []
    return lines


def _ports(ports: Sequence[Object]) -> str:
    if not ports:
        return "\n"
    lines = [
        line
        for port in ports
        for line in (
            f" PublishedPort = {port.get('PublishedPort', 0)}",
            f"  Protocol = {port.get('Protocol', '')}",
            f"  TargetPort = {port.get('TargetPort', 0)}",
            f"  PublishMode = {port.get('PublishMode', '')}",
        )
    ]
    return "\nPorts:\n" + "\n".join(lines) + " \n"


def _health(health: Object | None) -> str:
    if not health:
        return ""
    lines = [
        " Healthcheck:",
        f"  Interval = {duration_text(health.get('Interval', 0))}",
        f"  Retries = {health.get('Retries', 0)}",
        f"  StartPeriod =\t{duration_text(health.get('StartPeriod', 0))}",
        f"  Timeout =\t{duration_text(health.get('Timeout', 0))}",
    ]
    if health.get("Test"):
        lines += ["  Tests:", *(f"\t Test = {word}" for word in health["Test"])]
        return "\n".join(lines) + " "
    return "\n".join(lines) + "\n"
