"""Health of containers: a pure decision per probe, and the loop that runs the probes by exec (moby daemon/health.go)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from base.times import rfc3339
from runtime.containers.container import Container
from runtime.containers.states import Status
from runtime.containers.times import parse_time
from runtime.errors import EngineError
from runtime.types import Health, HealthcheckResult, HealthConfig

OUTPUT_SIZE_MAX = 4096
LOG_LENGTH = 5
_SECOND = 1_000_000_000


class Schedule(msgspec.Struct, frozen=True):
    """Seconds, with dockerd's defaults filled in."""

    interval_s: float
    timeout_s: float
    start_period_s: float
    start_interval_s: float
    retries: int


def schedule(config: HealthConfig) -> Schedule:
    """0 means the default: 30 s, 30 s, 0 s, 5 s, 3."""
    return Schedule(
        (config.Interval or 30 * _SECOND) / _SECOND,
        (config.Timeout or 30 * _SECOND) / _SECOND,
        config.StartPeriod / _SECOND,
        (config.StartInterval or 5 * _SECOND) / _SECOND,
        config.Retries or 3,
    )


def command(config: HealthConfig, shell: list[str] | None) -> list[str]:
    """What a probe runs; [] for none."""
    test = config.Test or []
    if len(test) > 1 and test[0] == "CMD":
        return test[1:]
    if len(test) > 1 and test[0] == "CMD-SHELL":
        return [*(shell or ["/bin/sh", "-c"]), test[1]]
    return []


def after_probe(health: Health, result: HealthcheckResult, plan: Schedule, age_s: float) -> Health:
    """The health after one more probe, begun ``age_s`` after the container's start.

    Failures within the start period count only once it has been healthy.
    """
    log_entries = [*health.Log, result][-LOG_LENGTH:]
    if result.ExitCode == 0:
        return Health(Status="healthy", FailingStreak=0, Log=log_entries)
    if health.Status == "starting" and age_s < plan.start_period_s:
        return Health(Status="starting", FailingStreak=health.FailingStreak, Log=log_entries)
    streak = health.FailingStreak + 1
    return Health(
        Status="unhealthy" if streak >= plan.retries else health.Status, FailingStreak=streak, Log=log_entries
    )


def next_delay(health: Health, plan: Schedule, age_s: float) -> float:
    """Seconds until the next probe. The end of the start period is not passed over: from there on failures count.

    dockerd waits for a whole start interval, however short the period, and so delays its verdict.
    """
    if health.Status == "starting" and age_s < plan.start_period_s:
        return min(plan.start_interval_s, plan.start_period_s - age_s)
    return plan.interval_s


Probe = Callable[[Container, list[str], float], Awaitable[tuple[int, str]]]


async def watch(container: Container, probe: Probe, changed: Callable[[Container, str], None]) -> None:
    """Probe until cancelled. ``changed`` is called with the container and its previous status after each probe.

    The start period begins with the container's start, also under a daemon that takes it over.
    """
    config = container.record.Config.Healthcheck
    if config is None or not (args := command(config, container.record.Config.Shell)):
        return
    plan = schedule(config)
    began = time.monotonic() - max(0.0, time.time() - parse_time(container.state.StartedAt) / _SECOND)
    while True:
        health = container.state.Health or Health()
        await asyncio.sleep(next_delay(health, plan, time.monotonic() - began))
        age_s = time.monotonic() - began
        if container.state.Status is Status.PAUSED:
            continue
        start = rfc3339(time.time_ns())
        try:
            code, output = await probe(container, args, plan.timeout_s)
        except EngineError as error:
            code, output = -1, str(error)
        if not container.running:
            return
        result = HealthcheckResult(Start=start, End=rfc3339(time.time_ns()), ExitCode=code, Output=output)
        container.state.Health = after_probe(health, result, plan, age_s)
        changed(container, health.Status)
