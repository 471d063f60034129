"""Certificates that renew themselves (features A2.02): when, and the loop that does it.

A node renews at a random point between half and four fifths of its certificate's life, so that a cluster which was
formed in one minute does not come back in one minute. After a failure it tries again, soon at first; once the
certificate has run out, nobody takes it any more and only a new join helps.

One process of a host renews (``Renewer``); the other follows the files (``follow``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from pki.certificates import Identity, TrustRoot, new_csr
from pki.errors import InvalidCertificateError, NodeCertificateExpiredError, PKIError
from pki.keys import new_key
from pki.node_certificate import NodeCertificate, NodeCredentials, utc_now
from proto.ca_pb2 import RenewCertificateResponse

log = structlog.get_logger(__name__)

EARLIEST_FRACTION = 0.5
LATEST_FRACTION = 0.8

RETRY_DELAY_S_MIN = 0.2
RETRY_DELAY_S_MAX = 3600.0
ATTEMPT_TIMEOUT_S = 30.0
CLOCK_CHECK_S = 60.0
"""The wall clock may be set while we sleep: look at it that often."""

Renew = Callable[[bytes], Awaitable[RenewCertificateResponse]]
"""Ask the leader for a certificate: CSR (PEM) in, its answer out. Any exception is a failed attempt."""


def renewal_time(identity: Identity, chance: float) -> datetime:
    """When to renew (UTC).

    Args:
        identity: the certificate in use; its life begins when it was issued, not at the back-dated begin.
        chance: 0..1, drawn once for each certificate.
    """
    fraction = EARLIEST_FRACTION + (LATEST_FRACTION - EARLIEST_FRACTION) * chance
    return identity.issued_at + (identity.not_after - identity.issued_at) * fraction


def retry_delay_s(identity: Identity, failures: int, now: datetime) -> float:
    """How long to wait after the ``failures``-th failed attempt in a row (1 is the first).

    It doubles from a hundredth of the certificate's life (5 s at most), and is never more than a fifth of what is
    left of it, nor than an hour: a short outage near the end must not cost the node its membership.
    """
    lifetime_s = (identity.not_after - identity.issued_at).total_seconds()
    left_s = (identity.not_after - now).total_seconds()
    delay_s = min(5.0, lifetime_s / 100) * 2.0 ** min(failures - 1, 30)
    return max(RETRY_DELAY_S_MIN, min(delay_s, left_s / 5, RETRY_DELAY_S_MAX))


def check_renewed(current: NodeCredentials, renewed: NodeCredentials, now: datetime) -> None:
    """Refuse an answer that would turn this node into another one. The role may differ: that is how it changes.

    Raises:
        InvalidCertificateError: another node or cluster, or not valid now.
    """
    old, new = current.identity, renewed.identity
    if (new.node_id, new.cluster_id) != (old.node_id, old.cluster_id):
        raise InvalidCertificateError(f"renewed certificate is for node {new.node_id} of cluster {new.cluster_id}")
    new.check_time(now)


class Renewer:
    """Keeps one node's certificate fresh."""

    def __init__(
        self,
        source: NodeCertificate,
        renew: Renew,
        *,
        clock: Callable[[], datetime] = utc_now,
        chance: Callable[[], float] = random.random,
        clock_check_s: float = CLOCK_CHECK_S,
    ) -> None:
        """
        Args:
            source: the certificate, replaced on disk and in memory by each renewal.
            renew: see ``Renew``.
            clock: aware time.
            chance: gives numbers in 0..1.
            clock_check_s: how often the clock is looked at while there is nothing else to do.
        """
        self._clock_check_s = clock_check_s
        self._source, self._renew, self._clock, self._chance = source, renew, clock, chance
        self._wanted = asyncio.Event()

    def renew_now(self) -> None:
        """Do not wait any longer: the node's role, or the root, has changed. From the loop of ``run``."""
        self._wanted.set()

    async def run(self) -> None:
        """Renew for as long as it goes well. Never returns.

        Raises:
            NodeCertificateExpiredError: the certificate ran out.
        """
        failures = 0
        due = renewal_time(self._source.identity, self._chance())
        while True:
            await self._wait_until(due)
            self._wanted.clear()
            if self._clock() >= self._source.identity.not_after:
                raise NodeCertificateExpiredError
            try:
                await self.renew_once()
            except Exception as error:
                failures += 1
                now = self._clock()
                due = now + timedelta(seconds=retry_delay_s(self._source.identity, failures, now))
                log.warning(
                    "certificate.renewal_failed",
                    failures=failures,
                    not_after=self._source.identity.not_after.isoformat(),
                    retry_at=due.isoformat(),
                    reason=str(error) or type(error).__name__,
                )
            else:
                failures = 0
                due = renewal_time(self._source.identity, self._chance())

    async def wait_valid(self) -> None:
        """Return once the certificate counts again: a wall clock that was ahead has been set right."""
        while True:
            identity = self._source.identity
            if identity.not_before <= self._clock() < identity.not_after:
                return
            await asyncio.sleep(self._clock_check_s)

    async def renew_once(self) -> None:
        """One attempt, with a new key.

        Raises:
            Exception: whatever ``renew`` raised.
            InvalidCertificateError: the answer is not to be used.
            OSError: it could not be written; the old certificate stays.
            TimeoutError: no answer.
        """
        key = new_key()
        async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
            answer = await self._renew(new_csr(key))
        current = self._source.current
        same_root = not answer.root_ca_pem or answer.root_ca_pem == current.root.pem
        root = current.root if same_root else TrustRoot(answer.root_ca_pem)
        renewed = NodeCredentials.verified(chain_pem=answer.certificate_chain_pem, key=key, root=root)
        check_renewed(current, renewed, self._clock())
        await asyncio.to_thread(self._source.replace, renewed)
        log.info(
            "certificate.renewed",
            serial=f"{renewed.identity.serial:x}",
            role=renewed.identity.role.value,
            not_after=renewed.identity.not_after.isoformat(),
        )

    async def _wait_until(self, due: datetime) -> None:
        """Until ``due``, or until somebody wants it sooner, or until the certificate has run out."""
        due = min(due, self._source.identity.not_after)
        while not self._wanted.is_set() and (left_s := (due - self._clock()).total_seconds()) > 0:
            try:
                async with asyncio.timeout(min(left_s, self._clock_check_s)):
                    await self._wanted.wait()
            except TimeoutError:
                continue


async def follow(source: NodeCertificate, period_s: float = 1.0) -> None:
    """Take over what another process of this host writes into ``source``'s folder. Never returns.

    Files that are damaged, or half of a change, are looked at again; the credentials in memory stay in use.
    """
    told = ""
    while True:
        await asyncio.sleep(period_s)
        try:
            changed = source.refresh()
            told = ""
            if changed:
                log.info("certificate.reloaded", serial=f"{source.identity.serial:x}", role=source.identity.role.value)
        except (OSError, PKIError) as error:
            if told != str(error):
                told = str(error)
                log.warning("certificate.reload_failed", directory=str(source.directory), reason=told)
