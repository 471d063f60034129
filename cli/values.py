"""What users write in flags and stack files, as the API's values. Every function raises ValueError with one line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_BYTE_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def duration_ns(text: str) -> int:
    """Nanoseconds of Go's duration syntax ("1m30s", "500ms", "0")."""
    text = text.strip()
    sign = -1 if text.startswith("-") else 1
    rest = text.lstrip("+-")
    if rest == "0":
        return 0
    total, position = 0.0, 0
    while position < len(rest):
        match = _DURATION.match(rest, position)
        if match is None:
            raise ValueError(f"time: invalid duration {text!r}")
        total += float(match.group(1)) * _UNIT_NS[match.group(2)]
        position = match.end()
    if position == 0:
        raise ValueError(f"time: invalid duration {text!r}")
    return sign * round(total)


def duration_text(ns: int) -> str:
    """Go's duration syntax, as inspect --pretty prints it ("10s", "1m30s")."""
    if ns == 0:
        return "0s"
    seconds = ns / 1e9
    if seconds < 1:
        return f"{ns / 1e6:g}ms"
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    text = f"{int(hours)}h" if hours else ""
    text += f"{int(minutes)}m" if hours or minutes else ""
    return f"{text}{seconds:g}s"


def size_bytes(text: str) -> int:
    """Bytes of "64m", "1.5g", "512" (binary units, as docker/go-units RAMInBytes)."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"invalid size: {text!r}")
    return int(float(match.group(1)) * 1024 ** _BYTE_UNITS[match.group(2).lower()])


def nano_cpus(text: str) -> int:
    """1e-9 CPUs of "0.5"."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"failed to parse {text} as a rational number")
    return round(value * 1e9)


def key_values(items: Iterable[str]) -> dict[str, str]:
    """Labels and the like: "k=v"; "k" alone is empty."""
    return {key: value for key, _, value in (item.partition("=") for item in items)}


def fields(text: str) -> list[tuple[str, str]]:
    """The comma-separated key=value fields of --mount, --publish, --secret (CSV, so that values may be quoted)."""
    row = next(csv.reader([text]), [])
    return [(key.strip().lower(), value) for key, _, value in (field.partition("=") for field in row)]


def port(text: str) -> list[dict[str, Any]]:
    """A published port in short (``[[ip:]published:]target[/protocol]``, ranges too) or long form."""
    if "=" in text:
        return [_long_port(text)]
    body, _, protocol = text.partition("/")
    *published, target = body.split(":")
    if len(published) > 1:
        raise ValueError(f"HostIP is not supported: {text}")
    targets = _range(target, text)
    sources = _range(published[0], text) if published and published[0] else [0] * len(targets)
    if len(sources) != len(targets):
        raise ValueError(f"invalid ranges specified for container and host Ports: {target} and {published[0]}")
    return [
        _port(source, wanted, protocol or "tcp", "ingress") for source, wanted in zip(sources, targets, strict=True)
    ]


def _long_port(text: str) -> dict[str, Any]:
    target, published, protocol, mode = 0, 0, "tcp", "ingress"
    for key, value in fields(text):
        match key:
            case "target":
                target = _port_number(value, text)
            case "published":
                published = _port_number(value, text)
            case "protocol" if value in ("tcp", "udp", "sctp"):
                protocol = value
            case "mode" if value in ("ingress", "host"):
                mode = value
            case "protocol" | "mode":
                raise ValueError(f"invalid {key} value {value}")
            case _:
                raise ValueError(f"invalid field key {key}")
    if not target:
        raise ValueError(f'missing mandatory field "target" in {text}')
    return _port(published, target, protocol, mode)


def _port(published: int, target: int, protocol: str, mode: str) -> dict[str, Any]:
    made: dict[str, Any] = {"Protocol": protocol, "TargetPort": target, "PublishMode": mode}
    if published:
        made["PublishedPort"] = published
    return made


def _range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    start = _port_number(first, whole)
    end = _port_number(last, whole) if dash else start
    if end < start:
        raise ValueError(f"invalid port range in {whole}")
    return list(range(start, end + 1))


def _port_number(text: str, whole: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"invalid containerPort: {whole}")
    return int(text)


def mount(text: str) -> dict[str, Any]:
    """A --mount: ``type=volume|bind|tmpfs,source=...,target=...,readonly``."""
    made: dict[str, Any] = {"Type": "volume"}
    bind: dict[str, Any] = {}
    volume: dict[str, Any] = {}
    tmpfs: dict[str, Any] = {}
    driver: dict[str, Any] = {}
    for key, value in fields(text):
        match key:
            case "type":
                made["Type"] = value.lower()
            case "source" | "src":
                made["Source"] = value
            case "target" | "dst" | "destination":
                made["Target"] = value
            case "readonly" | "ro":
                made["ReadOnly"] = _flag(value, key)
            case "consistency":
                made["Consistency"] = value
            case "bind-propagation":
                bind["Propagation"] = value
            case "bind-nonrecursive":
                bind["NonRecursive"] = _flag(value, key)
            case "bind-create-src":
                bind["CreateMountpoint"] = _flag(value, key)
            case "volume-nocopy":
                volume["NoCopy"] = _flag(value, key)
            case "volume-label":
                volume.setdefault("Labels", {}).update(key_values([value]))
            case "volume-subpath":
                volume["Subpath"] = value
            case "volume-driver":
                driver["Name"] = value
            case "volume-opt":
                driver.setdefault("Options", {}).update(key_values([value]))
            case "tmpfs-size":
                tmpfs["SizeBytes"] = size_bytes(value)
            case "tmpfs-mode":
                tmpfs["Mode"] = int(value, 8)
            case _:
                raise ValueError(f"unknown option '{key}' in '{text}'")
    if driver:
        volume["DriverConfig"] = driver
    for kind, name, options in (
        ("bind", "BindOptions", bind),
        ("volume", "VolumeOptions", volume),
        ("tmpfs", "TmpfsOptions", tmpfs),
    ):
        if options and made["Type"] != kind:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{made['Type']}'")
        if options:
            made[name] = options
    if not made.get("Target"):
        raise ValueError("target is required")
    return made


def _flag(value: str, key: str) -> bool:
    if value.lower() in ("", "1", "true"):
        return True
    if value.lower() in ("0", "false"):
        return False
    raise ValueError(f"invalid value for {key}: {value}")


def ulimit(text: str) -> dict[str, Any]:
    """``name=soft[:hard]``."""
    name, separator, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    try:
        numbers = int(soft), int(hard or soft)
    except ValueError:
        raise ValueError(f"invalid ulimit argument: {text}") from None
    if not separator:
        raise ValueError(f"invalid ulimit argument: {text}")
    return {"Name": name, "Soft": numbers[0], "Hard": numbers[1]}


def file_reference(text: str, *, default_directory: str) -> dict[str, Any]:
    """A --secret or --config: a name, or ``source=,target=,uid=,gid=,mode=``. Returns Source and File."""
    source, file = text, {"Name": "", "UID": "0", "GID": "0", "Mode": 0o444}
    if "=" in text:
        source = ""
        for key, value in fields(text):
            match key:
                case "source" | "src":
                    source = value
                case "target":
                    file["Name"] = value
                case "uid" | "gid":
                    file[key.upper()] = value
                case "mode":
                    file["Mode"] = int(value, 8)
                case _:
                    raise ValueError(f"invalid field in {text!r}: {key}")
    if not source:
        raise ValueError("source is required")
    file["Name"] = file["Name"] or f"{default_directory}{source}"
    return {"Source": source, "File": file}
