"""What a manager that ended says of itself in docker info."""

from __future__ import annotations

import errno
import os

import pytest

from manager.consensus.port import CorruptStateError
from manager.main import failure_text
from pki.errors import InvalidCertificateError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_place_and_what_helps(number: int) -> None:
    told = failure_text(OSError(number, os.strerror(number)), "/var/lib/swarm")
    assert told == (
        f"{os.strerror(number)} for the swarm's log below /var/lib/swarm: the manager goes on once there is room"
    )


@pytest.mark.parametrize("error", [CorruptStateError, InvalidCertificateError])
def test_of_damage_it_is_told_what_helps(error: type[Exception]) -> None:
    told = failure_text(error("/x/raft/journal/journal-0000000001: offset 7: record 2 is damaged"), "/x")
    assert told == (
        "/x/raft/journal/journal-0000000001: offset 7: record 2 is damaged; restore it from a backup, and the manager goes "
        "on; or, while other managers lead the swarm, let this node leave it with force and join again"
    )


def test_any_other_failure_says_what_it_says() -> None:
    assert failure_text(OSError(errno.EIO, "Input/output error"), "/x") == "[Errno 5] Input/output error"
    assert failure_text(LookupError(), "/x") == "LookupError()"
