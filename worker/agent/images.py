"""Having an image before a task starts (feature A5.16).

A pull is always tried, and when it fails an image that is here already will do; without one the task is rejected with
the pull's error. What keeps fifty tasks from waiting for one registry fifty times:

- an image named by digest that is here is not asked for;
- tasks that want the same image share one pull, and one that ended a few seconds ago counts, well or ill;
- a registry that could not be reached is not tried again for a while;
- a pull that shows no progress is given up, much earlier when the image is here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from base.tasks import OwnedTasks
from runtime.images import (
    ImageNotFoundError,
    ImagesError,
    ImageStore,
    InvalidReferenceError,
    RegistryAuth,
    RegistryUnavailableError,
)
from runtime.images.reference import Reference, parse_reference
from worker.agent.executor import ExecutorError

log = structlog.get_logger(__name__)

FRESH_S = 5.0
"""A pull's outcome holds for others that want the same."""

UNREACHABLE_S = 10.0
"""A registry that could not be reached is left alone for that long."""

STALL_S = 60.0
STALL_S_WITH_LOCAL = 5.0
"""Without progress for so long a pull is given up; the second until the registry first answers, when the image is here."""

REMEMBERED_MAX = 256

_Key = tuple[str, str]
_K = TypeVar("_K")


class _Outcome(msgspec.Struct, frozen=True):
    at_s: float
    error: ImagesError | None


class ImagePuller:
    """The agent's way to images; ``close`` ends pulls that nobody waits for."""

    def __init__(
        self, images: ImageStore, *, stall_s: float = STALL_S, stall_s_with_local: float = STALL_S_WITH_LOCAL
    ) -> None:
        self._images = images
        self._stall_s, self._stall_s_with_local = stall_s, stall_s_with_local
        self._flights: dict[_Key, asyncio.Task[None]] = {}
        self._tasks = OwnedTasks()
        self._outcomes: dict[_Key, _Outcome] = {}
        self._unreachable: dict[str, _Outcome] = {}

    async def ensure(self, name: str, auth: RegistryAuth | None) -> None:
        """Return when a container can be made from ``name``.

        Raises:
            ExecutorError: it is not here and could not be pulled; the message is the pull's.
        """
        is_local = self._is_local(name)
        try:
            reference = parse_reference(name).with_default_tag()
        except InvalidReferenceError as error:
            if is_local:
                return  # an image ID
            raise ExecutorError(f"{error}: {name}") from None
        if is_local and reference.digest:
            return
        try:
            await self._pull(reference, auth, is_local=is_local)
        except ImagesError as error:
            if not self._is_local(name):
                # Docker's words first, which people search for, then the reason, which Docker leaves to the log.
                raise ExecutorError(f"No such image: {reference.familiar}: {error}") from None

    async def close(self) -> None:
        """Give up what is under way."""
        await self._tasks.close()

    def _is_local(self, name: str) -> bool:
        try:
            self._images.get(name)
        except (ImageNotFoundError, InvalidReferenceError):
            return False
        return True

    async def _pull(self, reference: Reference, auth: RegistryAuth | None, *, is_local: bool) -> None:
        loop = asyncio.get_running_loop()
        key = (str(reference), _fingerprint(auth))
        flight = self._flights.get(key)
        if flight is None:
            known = self._outcomes.get(key)
            if known is not None and loop.time() - known.at_s < FRESH_S:
                _settle(known)
                return
            unreachable = self._unreachable.get(reference.domain)
            if unreachable is not None and loop.time() - unreachable.at_s < UNREACHABLE_S:
                _settle(unreachable)
                return
            work = self._fly(key, reference, auth, is_local=is_local)
            flight = self._flights[key] = self._tasks.spawn(work, name=f"pull {reference}", awaited=True)
        # Shielded: one task that is stopped must not end the pull of the others.
        await asyncio.shield(flight)

    async def _fly(self, key: _Key, reference: Reference, auth: RegistryAuth | None, *, is_local: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._watched(reference, auth, is_local=is_local)
        except ImagesError as error:
            log.warning("pull.failed", image=reference.familiar, reason=str(error), is_local=is_local)
            failed = _Outcome(loop.time(), error)
            _remember(self._outcomes, key, failed)
            if isinstance(error, RegistryUnavailableError):
                _remember(self._unreachable, reference.domain, failed)
            raise
        else:
            _remember(self._outcomes, key, _Outcome(loop.time(), None))
        finally:
            del self._flights[key]

    async def _watched(self, reference: Reference, auth: RegistryAuth | None, *, is_local: bool) -> None:
        """Pull, unless nothing moves for too long."""
        first_s = self._stall_s_with_local if is_local else self._stall_s
        try:
            async with asyncio.timeout(first_s) as patience:
                await self._images.pull(str(reference), auth=auth, progress=_moving(patience, self._stall_s))
        except TimeoutError:
            if not patience.expired():
                raise RegistryUnavailableError(f"pulling {reference.familiar} timed out") from None
            raise RegistryUnavailableError(f"registry {reference.domain} does not answer") from None


def _moving(patience: asyncio.Timeout, stall_s: float) -> Callable[[dict[str, object]], None]:
    def progress(_message: dict[str, object]) -> None:
        if not patience.expired():
            patience.reschedule(asyncio.get_running_loop().time() + stall_s)

    return progress


def _fingerprint(auth: RegistryAuth | None) -> str:
    """Tells credentials apart without keeping them."""
    if auth is None:
        return ""
    fields = (auth.username, auth.password, auth.identity_token, auth.registry_token, auth.server_address)
    return hashlib.sha256("\0".join(fields).encode()).hexdigest()


def _settle(outcome: _Outcome) -> None:
    if outcome.error is not None:
        raise outcome.error


def _remember(table: dict[_K, _Outcome], key: _K, outcome: _Outcome) -> None:
    """Keep the newest few."""
    table.pop(key, None)
    table[key] = outcome
    while len(table) > REMEMBERED_MAX:
        del table[next(iter(table))]
