"""Which platform this machine has, and which entry of an index serves a wanted one.

Source: containerd ``platforms`` (normalisation of architectures and variants, ``compare.go`` for the order of choice).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from base.numbers import natural
from runtime.images.errors import InvalidArgumentError
from runtime.images.types import Descriptor, Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
}
_LEVEL_MAX = 9
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")


def normalize(platform: Platform) -> Platform:
    """One spelling per platform: ``linux/aarch64/v8`` and ``linux/arm64`` are equal."""
    system, architecture, variant = platform.os.lower(), platform.architecture.lower(), platform.variant.lower()
    if architecture in _MACHINES:
        architecture, implied = _MACHINES[architecture]
        variant = variant or implied
    if variant.isdecimal():
        variant = f"v{variant}"
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(architecture=architecture, os=system, variant=variant)


def host_platform() -> Platform:
    """The platform of this machine."""
    return normalize(Platform(architecture=os.uname().machine, os="linux"))


def parse_platform(text: str) -> Platform:
    """``os``, ``arch``, ``os/arch`` or ``os/arch/variant``. Raises InvalidArgumentError."""
    parts = text.strip().split("/")
    if not all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts):
        raise InvalidArgumentError(f'"{text}" is an invalid platform: want OS[/ARCH[/VARIANT]], such as linux/amd64')
    host = host_platform()
    if len(parts) == 1:
        if parts[0] == "linux":
            return host
        return normalize(Platform(architecture=parts[0], os="linux"))
    if len(parts) > 3:
        raise InvalidArgumentError(f'"{text}" is an invalid platform: too many parts')
    return normalize(Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else ""))


def candidates(wanted: Platform) -> list[Platform]:
    """Platforms that can run where ``wanted`` can, best first."""
    wanted = normalize(wanted)
    choices = [wanted]

    def add(architecture: str, variant: str = "") -> None:
        choices.append(Platform(architecture=architecture, os=wanted.os, variant=variant))

    if wanted.architecture == "amd64":
        if wanted.variant:
            level = natural(wanted.variant[1:], largest=_LEVEL_MAX) or 1
            for lower in range(level - 1, 1, -1):
                add("amd64", f"v{lower}")
            add("amd64")
        add("386")
    elif wanted.architecture == "arm64":
        if wanted.variant:
            add("arm64")
        for variant in _ARM_VARIANTS:
            add("arm", variant)
    elif wanted.architecture == "arm" and wanted.variant in _ARM_VARIANTS:
        for variant in _ARM_VARIANTS[_ARM_VARIANTS.index(wanted.variant) + 1 :]:
            add("arm", variant)
    return choices


def satisfies(wanted: Platform, actual: Platform) -> bool:
    """Whether an image made for ``actual`` may be used where ``wanted`` was asked for."""
    return normalize(actual) in candidates(wanted)


def choose(wanted: Platform, entries: Sequence[Descriptor]) -> Descriptor | None:
    """The best entry of an index, the first one among equals; an entry without a platform is the last resort."""
    for candidate in candidates(wanted):
        for entry in entries:
            if entry.platform is not None and normalize(entry.platform) == candidate:
                return entry
    return next((entry for entry in entries if entry.platform is None), None)
