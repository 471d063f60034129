"""The nonces of boots on disk: what the managers may have is always among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.agent import boots
from worker.agent.boots import UNCONFIRMED_MAX, Boots


def begun(folder: Path, *, confirm: bool = False) -> Boots:
    made = Boots(folder)
    made.begin()
    if confirm:
        made.confirm()
    return made


def test_each_boot_has_a_nonce_and_knows_the_last_one(tmp_path: Path) -> None:
    first = begun(tmp_path, confirm=True)
    second = begun(tmp_path, confirm=True)
    assert first.known == []
    assert second.known == [first.nonce]
    assert second.nonce != first.nonce


def test_a_boot_whose_answer_was_lost_is_known(tmp_path: Path) -> None:
    confirmed, unheard = begun(tmp_path, confirm=True), begun(tmp_path)
    assert begun(tmp_path).known == [confirmed.nonce, unheard.nonce]


def test_the_last_confirmed_boot_is_known_after_any_number_of_boots(tmp_path: Path) -> None:
    confirmed = begun(tmp_path, confirm=True)
    for _ in range(3 * UNCONFIRMED_MAX):
        last = begun(tmp_path)
    known = begun(tmp_path).known
    assert (known[0], known[-1]) == (confirmed.nonce, last.nonce)
    assert len(known) == UNCONFIRMED_MAX + 1


def test_on_a_full_disk_the_last_boot_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nonce that the managers have and the file has not would lock the node out."""
    confirmed = begun(tmp_path, confirm=True)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(boots, "write_atomic", full)
        during = begun(tmp_path, confirm=True)
    assert during.nonce in begun(tmp_path).known
    assert during.nonce == confirmed.nonce
