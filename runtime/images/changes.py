"""Dockerfile instructions that ``import`` and ``commit`` apply to a configuration. Pure.

Source: Dockerfile reference; moby ``builder/dockerfile`` (``BuildFromConfig`` lists which instructions are allowed).
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence

import msgspec

from base.json_text import read_json
from base.numbers import natural
from runtime.images.errors import InvalidArgumentError
from runtime.images.types import HealthConfig, ImageConfig

_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """A new configuration with the instructions applied in order.

    Raises:
        InvalidArgumentError: an instruction is unknown, not allowed here or malformed.
    """
    result = msgspec.convert(msgspec.to_builtins(config), ImageConfig)
    for change in changes:
        for line in change.replace("\\\n", " ").splitlines():
            name, _, rest = line.strip().partition(" ")
            if not name:
                continue
            instruction = _INSTRUCTIONS.get(name.upper())
            if instruction is None:
                raise InvalidArgumentError(f"{name} is not a valid change command")
            if not rest.strip():
                raise InvalidArgumentError(f"{name.upper()} requires at least one argument")
            instruction(result, rest.strip())
    return result


def _words(rest: str, name: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: {error}") from error


def _command(rest: str, shell: list[str] | None) -> list[str]:
    """JSON form as it is, anything else for the shell."""
    if rest.startswith("["):
        try:
            return read_json(rest, type=list[str])
        except msgspec.DecodeError:
            pass
    return [*(shell or ["/bin/sh", "-c"]), rest]


def _list(rest: str, name: str) -> list[str]:
    if rest.startswith("["):
        try:
            return read_json(rest, type=list[str])
        except msgspec.DecodeError:
            pass
    return _words(rest, name)


def _pairs(rest: str, name: str) -> list[tuple[str, str]]:
    """``K=V K2="v 2"`` or the old form ``K the rest of the line``."""
    first, _, remainder = rest.partition(" ")
    if "=" not in first:
        if not remainder.strip():
            raise InvalidArgumentError(f"{name} must have two arguments")
        return [(first, remainder.strip())]
    pairs = []
    for word in _words(rest, name):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidArgumentError(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        pairs.append((key, value))
    return pairs


def _cmd(config: ImageConfig, rest: str) -> None:
    config.Cmd = _command(rest, config.Shell)


def _entrypoint(config: ImageConfig, rest: str) -> None:
    config.Entrypoint = _command(rest, config.Shell)


def _env(config: ImageConfig, rest: str) -> None:
    env = list(config.Env or [])
    for key, value in _pairs(rest, "ENV"):
        env = [entry for entry in env if entry.partition("=")[0] != key] + [f"{key}={value}"]
    config.Env = env


def _label(config: ImageConfig, rest: str) -> None:
    config.Labels = {**(config.Labels or {}), **dict(_pairs(rest, "LABEL"))}


def _expose(config: ImageConfig, rest: str) -> None:
    ports = dict(config.ExposedPorts or {})
    for word in _words(rest, "EXPOSE"):
        match = _PORT.fullmatch(word)
        low = int(match[1]) if match else 0
        high = int(match[2]) if match and match[2] else low
        if match is None or not 0 < low <= high <= 65535:
            raise InvalidArgumentError(f"invalid containerPort: {word}")
        for port in range(low, high + 1):
            ports[f"{port}/{match[3] or 'tcp'}"] = {}
    config.ExposedPorts = ports


def _volume(config: ImageConfig, rest: str) -> None:
    volumes = dict(config.Volumes or {})
    for path in _list(rest, "VOLUME"):
        if not path:
            raise InvalidArgumentError("VOLUME specified can not be an empty string")
        volumes[path] = {}
    config.Volumes = volumes


def _workdir(config: ImageConfig, rest: str) -> None:
    config.WorkingDir = posixpath.normpath(posixpath.join("/", config.WorkingDir, rest))


def _user(config: ImageConfig, rest: str) -> None:
    config.User = rest


def _stopsignal(config: ImageConfig, rest: str) -> None:
    config.StopSignal = rest


def _shell(config: ImageConfig, rest: str) -> None:
    if not rest.startswith("["):
        raise InvalidArgumentError("SHELL requires the arguments to be in JSON form")
    config.Shell = _list(rest, "SHELL")


def _onbuild(config: ImageConfig, rest: str) -> None:
    config.OnBuild = [*(config.OnBuild or []), rest]


def _healthcheck(config: ImageConfig, rest: str) -> None:
    check, words = HealthConfig(), rest
    while words.startswith("--"):
        flag, _, words = words.partition(" ")
        words = words.lstrip()
        name, _, value = flag[2:].partition("=")
        if name == "retries" and (retries := natural(value, largest=2**31 - 1)) is not None:
            check.Retries = retries
        elif name in ("interval", "timeout", "start-period", "start-interval"):
            setattr(check, name.title().replace("-", ""), _duration_ns(value))
        else:
            raise InvalidArgumentError(f"Unknown flag: {name}")
    kind, _, command = words.partition(" ")
    if kind.upper() == "NONE":
        check.Test = ["NONE"]
    elif kind.upper() == "CMD" and command.strip():
        form = _command(command.strip(), None)
        check.Test = ["CMD-SHELL", command.strip()] if form[:2] == ["/bin/sh", "-c"] else ["CMD", *form]
    else:
        raise InvalidArgumentError(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)")
    config.Healthcheck = check


def _duration_ns(text: str) -> int:
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgumentError(f'time: invalid duration "{text}"')
    return int(sum(float(number) * _NANOSECONDS[unit] for number, unit in parts))


_INSTRUCTIONS: dict[str, Callable[[ImageConfig, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
