"""Whether and when a container that ended is started again: a pure decision (moby restartmanager)."""

from __future__ import annotations

import msgspec

from runtime.errors import InvalidParameterError
from runtime.types import HostConfig, RestartPolicy

DELAY_S_MIN = 0.1
DELAY_S_MAX = 60.0
STABLE_S = 10.0


class Ended(msgspec.Struct, frozen=True):
    """How a run ended: ``ran_s`` seconds long, after ``restarts`` restarts, the last one delayed ``delay_s``."""

    exit_code: int
    ran_s: float
    restarts: int
    delay_s: float
    stopped_by_user: bool


def validate(host: HostConfig) -> None:
    """Raises InvalidParameterError."""
    policy = host.RestartPolicy
    if policy.Name not in ("", "no", "always", "on-failure", "unless-stopped"):
        raise InvalidParameterError(f"invalid restart policy: unknown policy '{policy.Name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'")  # fmt: skip
    if policy.MaximumRetryCount < 0:
        raise InvalidParameterError("invalid restart policy: maximum retry count cannot be negative")
    if policy.MaximumRetryCount and policy.Name != "on-failure":
        raise InvalidParameterError("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if host.AutoRemove and policy.Name not in ("", "no"):
        raise InvalidParameterError("can't create 'AutoRemove' container with restart policy")


def delay_after(policy: RestartPolicy, ended: Ended) -> float | None:
    """Seconds until the next start, None for never. Doubles from 0.1 to 60, from the start again after a good run."""
    if ended.stopped_by_user or policy.Name in ("", "no"):
        return None
    if policy.Name == "on-failure":
        if ended.exit_code == 0:
            return None
        if policy.MaximumRetryCount and ended.restarts >= policy.MaximumRetryCount:
            return None
    if ended.ran_s >= STABLE_S or ended.delay_s == 0:
        return DELAY_S_MIN
    return min(ended.delay_s * 2, DELAY_S_MAX)


def starts_with_daemon(policy: RestartPolicy, *, stopped_by_user: bool) -> bool:
    """Whether a container that is down comes up with the daemon."""
    return policy.Name == "always" or (policy.Name == "unless-stopped" and not stopped_by_user)
