"""A container's changed limits and restart policy: a pure decision (moby daemon/update.go, container_unix.go)."""

from __future__ import annotations

import msgspec

from runtime.containers import restart, spec
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
        InvalidParameterError: the result contradicts itself.
        ConflictError: a limit stands against one that is set already.
    """
    limits = {name: value for name in _LIMITS if (value := getattr(wanted, name))}
    if "NanoCpus" in limits and (host.CpuQuota or host.CpuPeriod):
        raise ConflictError("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
    if host.NanoCpus and ("CpuQuota" in limits or "CpuPeriod" in limits):
        raise ConflictError("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
    if "MemorySwap" not in limits and 0 < host.MemorySwap < limits.get("Memory", 0):
        raise ConflictError(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    policy = wanted.RestartPolicy
    if policy.Name:
        if host.AutoRemove and policy.Name != "no":
            raise InvalidParameterError(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        limits["RestartPolicy"] = policy
    result = msgspec.structs.replace(host, **limits)
    restart.validate(result)
    spec.resources(result, facts)
    return result
