"""Keys on disk: file modes, crashes between two steps, autolock (A2.06, A2.07)."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pki.node_certificate
from base.files import write_atomic
from pki.authority import RootCA
from pki.certificates import Role
from pki.encryption import (
    DATA_KEY_FILE,
    DataKeys,
    ensure_data_keys,
    load_data_keys,
    new_unlock_key,
    save_data_keys,
    unlock_key_from_text,
    unlock_key_to_text,
    unwrap,
    wrap,
)
from pki.errors import (
    InvalidCertificateError,
    InvalidUnlockKeyError,
    LockedError,
    NodeCertificateMissingError,
    UntrustedCertificateError,
)
from pki.keys import new_key
from pki.node_certificate import KEY_FILE, ROOT_FILE, NodeCertificate, NodeCredentials
from tests.unit.pki.support import Authority


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def authority() -> Authority:
    return Authority()


def test_keys_are_for_their_owner_alone(tmp_path: Path, authority: Authority) -> None:
    directory = tmp_path / "state" / "certificates"
    before = os.umask(0)
    try:
        NodeCertificate.create(directory, authority.credentials())
        ensure_data_keys(directory)
    finally:
        os.umask(before)
    assert mode(directory) == 0o700
    assert mode(directory / KEY_FILE) == mode(directory / DATA_KEY_FILE) == 0o600
    assert {path.name for path in directory.iterdir()} == {KEY_FILE, ROOT_FILE, "swarm-node.crt", DATA_KEY_FILE}


def test_what_was_written_is_read_back(tmp_path: Path, authority: Authority) -> None:
    credentials = authority.credentials()
    NodeCertificate.create(tmp_path, credentials)
    assert NodeCertificate.load(tmp_path).current == credentials


def test_a_host_in_no_swarm_says_so(tmp_path: Path) -> None:
    with pytest.raises(NodeCertificateMissingError, match="not part of a swarm"):
        NodeCertificate.load(tmp_path)


@pytest.mark.parametrize("new_root", [False, True])
@pytest.mark.parametrize("steps", range(5))
def test_a_crash_between_any_two_files_leaves_a_matching_pair(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, steps: int, new_root: bool
) -> None:
    old = authority.credentials(node_id="n")
    new = (Authority(cluster_id=authority.cluster_id) if new_root else authority).credentials(node_id="n")
    holder = NodeCertificate.create(tmp_path, old)

    class PowerLoss(BaseException):
        pass

    def write(path: Path, data: bytes, *, mode: int) -> None:
        nonlocal steps
        if steps == 0:
            raise PowerLoss
        steps -= 1
        write_atomic(path, data, mode=mode)

    monkeypatch.setattr(pki.node_certificate, "write_atomic", write)
    with contextlib.suppress(PowerLoss):
        holder.replace(new)
    found = NodeCertificate.load(tmp_path).current
    assert found.chain_pem in (old.chain_pem, new.chain_pem)
    monkeypatch.undo()
    NodeCertificate.load(tmp_path).replace(new)
    assert NodeCertificate.load(tmp_path).current == new


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_atomic(path, b"old", mode=0o600)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    (tmp_path / f".key.{threading.get_native_id()}.tmp").symlink_to(victim)
    write_atomic(tmp_path / "key", b"ours", mode=0o600)
    assert victim.read_bytes() == b"theirs"


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:100], lambda data: data[: data.index(b"-----BEGIN CERT")]]
)
def test_a_damaged_pair_is_refused(tmp_path: Path, authority: Authority, damage: Callable[[bytes], bytes]) -> None:
    NodeCertificate.create(tmp_path, authority.credentials())
    path = tmp_path / KEY_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidCertificateError):
        NodeCertificate.load(tmp_path)


def test_another_nodes_certificate_does_not_go_with_our_key(authority: Authority) -> None:
    with pytest.raises(InvalidCertificateError, match="the key is not the certificate's"):
        NodeCredentials.verified(
            chain_pem=authority.credentials().chain_pem, key=new_key(), root=authority.root.trust_root()
        )


def test_another_process_takes_over_what_was_renewed(tmp_path: Path, authority: Authority) -> None:
    writer = NodeCertificate.create(tmp_path, authority.credentials(Role.WORKER, node_id="n"))
    reader = NodeCertificate.load(tmp_path)
    seen: list[NodeCredentials] = []
    forget = reader.on_change(seen.append)
    assert not reader.refresh()
    writer.replace(authority.credentials(Role.MANAGER, node_id="n"))
    assert reader.refresh()
    assert seen == [writer.current] == [reader.current]
    assert reader.identity.role is Role.MANAGER
    forget()
    writer.replace(authority.credentials(node_id="n"))
    assert reader.refresh()
    assert len(seen) == 1


def test_a_root_that_does_not_cover_our_certificate_is_not_taken(tmp_path: Path, authority: Authority) -> None:
    holder = NodeCertificate.create(tmp_path, authority.credentials())
    other = RootCA.create(authority.now).certificate_pem
    with pytest.raises(UntrustedCertificateError):
        holder.replace_root(other)
    holder.replace_root(authority.root.certificate_pem + other)
    assert NodeCertificate.load(tmp_path).current.root.pem == authority.root.certificate_pem + other


def test_autolock_encrypts_the_key_and_turning_it_off_undoes_it(tmp_path: Path, authority: Authority) -> None:
    kek = new_unlock_key()
    holder = NodeCertificate.create(tmp_path, authority.credentials())
    holder.change_unlock_key(kek)
    assert b"ENCRYPTED PRIVATE KEY" in (tmp_path / KEY_FILE).read_bytes()
    with pytest.raises(LockedError, match="needs to be unlocked"):
        NodeCertificate.load(tmp_path)
    with pytest.raises(InvalidUnlockKeyError, match="invalid key provided"):
        NodeCertificate.load(tmp_path, new_unlock_key())
    unlocked = NodeCertificate.load(tmp_path, kek)
    assert unlocked.current == holder.current
    unlocked.replace(authority.credentials())
    assert b"ENCRYPTED PRIVATE KEY" in (tmp_path / KEY_FILE).read_bytes()
    unlocked.change_unlock_key(None)
    assert NodeCertificate.load(tmp_path).current == unlocked.current


def test_the_unlock_key_has_swarms_form() -> None:
    key = new_unlock_key()
    text = unlock_key_to_text(key)
    assert text.startswith("SWMKEY-1-")
    assert len(text) == len("SWMKEY-1-") + 43
    assert unlock_key_from_text(f" {text}\n") == key
    assert len(unlock_key_from_text("SWMKEY-1-5+ICW2kRxPxZrVyBDWzBkzZdSd0Yc7Cl2o4Uuf9NPU4")) == 32


@pytest.mark.parametrize(
    "text", ["", "A" * 43, "SWMKEY-1-", "SWMKEY-2-" + "A" * 43, "SWMKEY-1-!" + "A" * 42, "SWMKEY-1-AAAA"]
)
def test_what_is_no_unlock_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidUnlockKeyError):
        unlock_key_from_text(text)


def test_the_data_key_is_made_once_and_wrapped_under_autolock(tmp_path: Path) -> None:
    keys = ensure_data_keys(tmp_path)
    assert ensure_data_keys(tmp_path) == keys
    kek = new_unlock_key()
    save_data_keys(tmp_path, keys, kek)
    assert keys.current not in (tmp_path / DATA_KEY_FILE).read_bytes()
    with pytest.raises(LockedError):
        load_data_keys(tmp_path)
    with pytest.raises(InvalidUnlockKeyError):
        load_data_keys(tmp_path, new_unlock_key())
    assert load_data_keys(tmp_path, kek) == keys


def test_the_data_key_is_changed_in_two_steps(tmp_path: Path) -> None:
    old = DataKeys.new()
    both = old.rotate()
    assert both.rotate() == both
    save_data_keys(tmp_path, both)
    assert load_data_keys(tmp_path) == both
    assert both.finish_rotation() == DataKeys(current=both.pending or b"")
    assert old.current.hex() not in repr(old)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"format":9,"wrapped":false,"current":""}', b'{"format":1,"wrapped":false,"current":"AAAA"}']
)
def test_a_damaged_data_key_is_refused_and_never_replaced(tmp_path: Path, text: bytes) -> None:
    (tmp_path / DATA_KEY_FILE).write_bytes(text)
    with pytest.raises(InvalidCertificateError, match=DATA_KEY_FILE):
        ensure_data_keys(tmp_path)
    assert (tmp_path / DATA_KEY_FILE).read_bytes() == text


def test_a_wrapped_secret_opens_for_its_purpose_alone() -> None:
    kek = new_unlock_key()
    wrapped = wrap(b"secret", kek, purpose=b"a")
    assert unwrap(wrapped, kek, purpose=b"a") == b"secret"
    for changed in (wrapped[:-1], wrapped[:-1] + b"\0", b"", b"x" * 11):
        with pytest.raises(InvalidUnlockKeyError):
            unwrap(changed, kek, purpose=b"a")
    with pytest.raises(InvalidUnlockKeyError):
        unwrap(wrapped, kek, purpose=b"b")


def test_one_process_does_not_undo_what_another_did(tmp_path: Path, authority: Authority) -> None:
    renews = NodeCertificate.create(tmp_path, authority.credentials(node_id="n"))
    other = NodeCertificate.load(tmp_path)
    renewed = authority.credentials(node_id="n")
    renews.replace(renewed)
    bundle = authority.root.certificate_pem + RootCA.create(authority.now).certificate_pem
    other.replace_root(bundle)
    assert other.current.chain_pem == renewed.chain_pem
    kek = new_unlock_key()
    renews.change_unlock_key(kek)
    assert renews.current.root.pem == bundle
    other.change_unlock_key(kek)
    assert renews.current == other.current == NodeCertificate.load(tmp_path, kek).current
