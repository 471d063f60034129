"""What users write in flags and stack files, as the API's values. Every function raises ValueError with one line."""

from __future__ import annotations

import csv
import ipaddress
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any  # Any: values of the API's JSON

_DURATION = re.compile(r"([0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(ns|us|µs|μs|ms|s|m|h)")
_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_BYTES = re.compile(r"([0-9]{1,40}(?:\.[0-9]{1,40})?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_DECIMAL = re.compile(r"[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40}")
_DOMAIN = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*\.?")
_INT64_MAX = 2**63 - 1
RESET = "RESET"  # of --cap-add and --cap-drop of an update: forget those of before
# What a bind mount does with mounts below its source, as BindOptions.
BIND_RECURSIVE: Mapping[str, Mapping[str, bool]] = {
    "enabled": {},
    "disabled": {"NonRecursive": True},
    "writable": {"ReadOnlyNonRecursive": True},
    "readonly": {"ReadOnlyForceRecursive": True},
}
_BYTE_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def duration_ns(text: str) -> int:
    """Nanoseconds of Go's duration syntax ("1m30s", "500ms", "0")."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total, position = Fraction(), 0
    while position < len(rest):
        match = _DURATION.match(rest, position)
        if match is None:
            raise ValueError(f'time: invalid duration "{text[:100]}"')
        total += Fraction(match.group(1)) * _UNIT_NS[match.group(2)]
        position = match.end()
    if position == 0 or total > _INT64_MAX:
        raise ValueError(f'time: invalid duration "{text[:100]}"')
    return sign * int(total)


def duration_text(ns: int) -> str:
    """Go's duration syntax, as inspect --pretty prints it ("10s", "1m30s")."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns < 10**9:
        for unit in ("ms", "µs"):
            if ns >= _UNIT_NS[unit]:
                return f"{sign}{_decimal(ns, _UNIT_NS[unit])}{unit}"
        return f"{sign}{ns}{'ns' if ns else 's'}"
    minutes, ns = divmod(ns, _UNIT_NS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{sign}{text}{_decimal(ns, 10**9)}s"


def _decimal(value: int, unit: int) -> str:
    """value/unit, exactly, without trailing zeros; ``unit`` is a power of ten."""
    whole, rest = divmod(value, unit)
    fraction = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def integer(text: str) -> int:
    """A whole number of 64 bits."""
    return _number(text, "ParseInt", -(2**63), _INT64_MAX)


def count(text: str) -> int:
    """A whole number of 64 bits that is not below 0."""
    return _number(text, "ParseUint", 0, 2**64 - 1)


def _number(text: str, function: str, least: int, most: int) -> int:
    sign = "[-+]?" if least < 0 else ""
    if not re.fullmatch(f"{sign}[0-9]{{1,100}}", text):
        raise ValueError(f'strconv.{function}: parsing "{text[:100]}": invalid syntax')
    if not least <= int(text) <= most:
        raise ValueError(f'strconv.{function}: parsing "{text[:100]}": value out of range')
    return int(text)


def decimal(text: str) -> float:
    """A number, as of a ratio."""
    if not re.fullmatch(rf"[-+]?(?:{_DECIMAL.pattern})(?:[eE][-+]?[0-9]{{1,3}})?", text):
        raise ValueError(f'strconv.ParseFloat: parsing "{text[:100]}": invalid syntax')
    return float(text)


def words(text: str) -> list[str]:
    """Words of a command line, as google/shlex splits it for Docker: quotes, backslashes, and ``#`` before a comment."""
    found: list[str] = []
    word: str | None = None  # the one that is being read
    quote = ""
    chars = iter(text)
    for char in chars:
        if char == "\\" and quote != "'":
            escaped = next(chars, None)
            if escaped is None:
                raise ValueError("EOF found after escape character")
            word = (word or "") + escaped
        elif quote:
            word, quote = (word or "", "") if char == quote else ((word or "") + char, quote)
        elif char in "\"'":
            word, quote = word or "", char
        elif char in " \t\r\n":
            found += [] if word is None else [word]
            word = None
        elif char == "#" and word is None:
            while next(chars, "\n") != "\n":
                pass
        else:
            word = (word or "") + char
    if quote:
        raise ValueError("EOF found when expecting closing quote")
    return found if word is None else [*found, word]


def environment(entries: Iterable[str], variables: Mapping[str, str]) -> list[str]:
    """``NAME=value`` entries in order, the last of a name counting; ``NAME`` alone is taken from ``variables``."""
    found: dict[str, str] = {}
    for entry in entries:
        name, separator, value = environment_entry(entry)
        if separator:
            found[name] = value
        elif name in variables:
            found[name] = variables[name]
    return [f"{name}={value}" for name, value in found.items()]


def environment_entry(text: str) -> tuple[str, str, str]:
    """Name, separator and value of ``NAME[=value]``."""
    name, separator, value = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    return name, separator, value


def environment_file(text: str) -> list[str]:
    """Entries of an --env-file: a line each; blank lines and those that begin with # are left out."""
    lines = (line.lstrip() for line in text.removeprefix("\ufeff").splitlines())
    found = [line for line in lines if line and not line.startswith("#")]
    for line in found:
        if any(char.isspace() for char in line.partition("=")[0]):
            raise ValueError(f"variable '{line.partition('=')[0]}' contains whitespaces")
    return found


def size_bytes(text: str) -> int:
    """Bytes of "64m", "1.5g", "512" (binary units, as docker/go-units RAMInBytes)."""
    match = _BYTES.fullmatch(text.strip())
    found = int(Fraction(match.group(1)) * 1024 ** _BYTE_UNITS[match.group(2).lower()]) if match else _INT64_MAX + 1
    if found > _INT64_MAX:
        raise ValueError(f"invalid size: '{text[:100]}'")
    return found


def nano_cpus(text: str) -> int:
    """1e-9 CPUs of "0.5"."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"failed to parse {text[:100]} as a rational number")
    found = Fraction(text) * 10**9
    if found.denominator != 1:
        raise ValueError("value is too precise")
    if found > _INT64_MAX:
        raise ValueError(f"value is out of range: {text[:100]}")
    return int(found)


def label(text: str) -> tuple[str, str]:
    """Key and value of ``KEY[=value]``."""
    key, _, value = text.partition("=")
    if not key:
        raise ValueError(f"invalid label '{text}': empty name")
    return key, value


def address(text: str) -> str:
    """An IP address."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"IP address is not correctly formatted: {text[:100]}") from None


def search_domain(text: str) -> str:
    """A domain of --dns-search; "." is none."""
    name = text.strip()
    if name != "." and (len(name) > 254 or not _DOMAIN.fullmatch(name) or not re.search("[a-zA-Z]", name)):
        raise ValueError(f"{text[:100]} is not a valid domain")
    return name


def key_values(items: Iterable[str]) -> dict[str, str]:
    """Labels and the like: "k=v"; "k" alone is empty."""
    return {key: value for key, _, value in (item.partition("=") for item in items)}


def fields(text: str) -> list[tuple[str, str]]:
    """The comma-separated key=value fields of --mount, --publish, --secret (CSV, so that values may be quoted)."""
    try:
        row = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"invalid value {text!r}: {error}") from error
    return [(key.strip().lower(), value) for key, _, value in (field.partition("=") for field in row)]


def network(text: str) -> dict[str, Any]:
    """A --network: a name, or ``name=,alias=,driver-opt=K=V``."""
    if "=" not in text:
        return {"Target": text}
    made: dict[str, Any] = {}
    for key, value in fields(text):
        match key:
            case "name":
                made["Target"] = value
            case "alias":
                made.setdefault("Aliases", []).append(value)
            case "driver-opt":
                made.setdefault("DriverOpts", {}).update(key_values([value]))
            case _:
                raise ValueError(f"invalid field key {key}")
    if not made.get("Target"):
        raise ValueError("network name/id is not specified")
    return made


def port(text: str) -> list[dict[str, Any]]:
    """A published port in short (``[[ip:]published:]target[/protocol]``, ranges too) or long form."""
    if "=" in text:
        return [_long_port(text)]
    body, slash, protocol = text.partition("/")
    protocol = protocol.lower()
    if slash and protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"Invalid proto: {protocol}")
    *published, target = body.split(":")
    if len(published) > 1:
        raise ValueError("hostip is not supported")
    targets = _range(target, text)
    sources = _range(published[0], text) if published and published[0] else [0] * len(targets)
    if len(targets) == 1:
        targets *= len(sources)  # a range of published ports for one of the service, as Docker's command has it
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
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError(f"Invalid containerPort: {whole}")
    return int(text)


def port_number(text: str) -> int:
    """A port from 1 to 65535."""
    return _port_number(text, text)


def ratio(text: str) -> float:
    """A number from 0 to 1."""
    if not _DECIMAL.fullmatch(text) or not float(text) <= 1:
        raise ValueError(f"want a number from 0 to 1, got {text[:40]!r}")
    return float(text)


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
            case "bind-recursive" if value in BIND_RECURSIVE:
                bind |= BIND_RECURSIVE[value]
            case "bind-recursive":
                wanted = 'must be "enabled", "disabled", "writable", or "readonly"'
                raise ValueError(f"invalid value for {key}: {value} ({wanted})")
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
                tmpfs["Mode"] = file_mode(value)
            case _:
                raise ValueError(f"unexpected key '{key}' in '{key}={value}'")
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
    check_recursive(bind, bool(made.get("ReadOnly")))
    return made


def check_recursive(bind: Mapping[str, Any], read_only: bool) -> None:
    """See that what a bind mount says of mounts below it goes with the rest of it."""
    forced = bind.get("ReadOnlyForceRecursive")
    if (forced or bind.get("ReadOnlyNonRecursive")) and not read_only:
        word = "readonly" if forced else "writable"
        raise ValueError(f"option 'bind-recursive={word}' requires 'readonly' to be specified in conjunction")
    if forced and bind.get("Propagation") != "rprivate":
        raise ValueError(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
        )


def file_mode(text: str) -> int:
    """A file mode, octal."""
    if not re.fullmatch(r"(0o?)?[0-7]{1,6}", text) or int(text, 8) > 0o7777:
        raise ValueError(f"invalid mode specified: {text!r}, want octal as in 0440")
    return int(text, 8)


def _flag(value: str, key: str) -> bool:
    if value.lower() in ("", "1", "true"):
        return True
    if value.lower() in ("0", "false"):
        return False
    raise ValueError(f"invalid value for {key}: {value}")


def capabilities(add: Iterable[str], drop: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of capabilities as the API has them (``CAP_SYS_NICE`` of ``sys_nice``), sorted; what is added is not dropped."""
    added, dropped = ({capability(text) for text in texts} - {RESET} for texts in (add, drop))
    added = {"ALL"} if "ALL" in added else added
    return sorted(added), sorted(({"ALL"} if "ALL" in dropped else dropped) - added)


def capability(text: str) -> str:
    """The API's name of one: ``CAP_SYS_NICE`` of ``sys_nice``; ALL stays, and so does RESET, which updates know."""
    name = text.strip().upper()
    return name if name in ("ALL", RESET) or name.startswith("CAP_") else f"CAP_{name}"


def ulimit(text: str) -> dict[str, Any]:
    """``name=soft[:hard]``."""
    name, _, limits = text.partition("=")
    soft, separator, hard = limits.partition(":")
    hard = hard if separator else soft
    if not name or not all(re.fullmatch(r"-1|[0-9]{1,19}", number) for number in (soft, hard)):
        raise ValueError(f"invalid ulimit argument: {text}")
    if int(hard) != -1 and not -1 < int(soft) <= int(hard):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Soft": int(soft), "Hard": int(hard)}


def file_reference(text: str) -> dict[str, Any]:
    """A --secret or --config: a name, or ``source=,target=,uid=,gid=,mode=``. Returns Source and File.

    The file is called as the source is; a name without a slash lies in /run/secrets, of configs in /.
    """
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
                    file["Mode"] = file_mode(value)
                case _:
                    raise ValueError(f"invalid field: {key}")
    if not source:
        raise ValueError("source is required")
    file["Name"] = file["Name"] or source
    return {"Source": source, "File": file}
