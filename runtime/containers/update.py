"""A container's changed limits and restart policy: a pure decision (moby daemon/update.go, container_unix.go)."""

from __future__ import annotations

import msgspec

from runtime.containers import limits, restart, spec
from runtime.errors import ConflictError, InvalidParameterError
from runtime.types import HostConfig

_LIMITS = (
    "BlkioWeight",
    "CpuShares",
    "CpuPeriod",
    "CpuQuota",
    "CpusetCpus",
    "CpusetMems",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
)


def merged(host: HostConfig, wanted: HostConfig, facts: spec.HostFacts) -> HostConfig:
    """``host`` with the limits and the policy of ``wanted`` that say something: zero and absent mean no change.

    Raises:
        InvalidParameterError: a limit is more than there is, or the result contradicts itself.
        ConflictError: a limit stands against one that is set already.
    """
    limits.check(wanted, facts.capacity)  # what stands already may be more than the host has by now
    changes = {name: value for name in _LIMITS if (value := getattr(wanted, name))}
    for name, words in (("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota")):
        if "NanoCpus" in changes and getattr(host, name):
            raise ConflictError(f"Conflicting options: Nano CPUs cannot be updated as {words} has already been set")
        if host.NanoCpus and name in changes:
            raise ConflictError(f"Conflicting options: {words} cannot be updated as NanoCPUs has already been set")
    if "MemorySwap" not in changes and 0 < host.MemorySwap < changes.get("Memory", 0):
        raise ConflictError(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    policy = wanted.RestartPolicy
    if policy.Name:
        if host.AutoRemove and policy.Name != "no":
            raise InvalidParameterError(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        changes["RestartPolicy"] = policy
    result = msgspec.structs.replace(host, **changes)
    restart.validate(result)
    spec.resources(result, facts)
    return result
