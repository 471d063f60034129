"""Who the process runs as: "user[:group]" looked up in the container's own /etc/passwd and /etc/group (moby oci)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from base.numbers import natural
from runtime.errors import InvalidParameterError
from runtime.kernel import rooted

_ID_MAX = 2**31 - 1
_QUOTED_MAX = 200
_FILE_SIZE_MAX = 1 << 20


class User(msgspec.Struct, frozen=True):
    """Numeric identity of a process; ``home`` is "/" when passwd does not say."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


def resolve(wanted: str, group_add: Sequence[str], passwd: str, group: str) -> User:
    """Look up ``wanted`` ("", "1000", "nginx", "1000:staff") in the texts of passwd and group.

    Raises:
        InvalidParameterError: a name that neither file has; numbers need no entry.
    """
    name, _, group_name = wanted.partition(":")
    uid, gid, home, login = 0, 0, "/", name
    for fields in _entries(passwd, 6):
        if (fields[0] == name) if name and not _is_number(name) else (fields[2] == (name or "0")):
            login, home = fields[0], fields[5] or "/"
            uid, gid = _number(fields[2]), _number(fields[3])
            break
    else:
        if name and not _is_number(name):
            raise InvalidParameterError(f"unable to find user {name[:_QUOTED_MAX]}: no matching entries in passwd file")
        uid = _number(name or "0")
    groups = list(_entries(group, 3))
    if group_name:
        gid = _group_id(group_name, groups)
        additional: set[int] = set()
    else:
        additional = {_number(fields[2]) for fields in groups if len(fields) > 3 and login in fields[3].split(",")}
    additional |= {_group_id(item, groups) for item in group_add}
    return User(uid, gid, tuple(sorted(additional)), home)


def look_up(rootfs: Path, wanted: str, group_add: Sequence[str]) -> User:
    """``resolve`` with the files of the container at ``rootfs``. Blocks.

    Raises:
        InvalidParameterError: as ``resolve``; also when one of the files is no file, or very large.
    """
    root = rooted.open_root(rootfs)
    try:
        return resolve(wanted, group_add, _read(root, "/etc/passwd"), _read(root, "/etc/group"))
    finally:
        os.close(root)


def _read(root: int, path: str) -> str:
    """Its text; "" where there is none, as in an image with one program and nothing else."""
    try:
        return rooted.read_file(root, path, _FILE_SIZE_MAX).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise InvalidParameterError(f"cannot read {path} of the container: {error.strerror}") from error


def _entries(text: str, fields_min: int) -> list[list[str]]:
    rows = [line.strip().split(":") for line in text.splitlines() if line and not line.startswith("#")]
    return [row for row in rows if len(row) >= fields_min]


def _number(text: str) -> int:
    number = natural(text, largest=_ID_MAX)
    if number is None:
        raise InvalidParameterError(f"uids and gids must be in range 0-{_ID_MAX}, got {text[:_QUOTED_MAX]!r}")
    return number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _group_id(name: str, groups: Sequence[Sequence[str]]) -> int:
    for fields in groups:
        if fields[0] == name:
            return _number(fields[2])
    if _is_number(name):
        return _number(name)
    raise InvalidParameterError(f"unable to find group {name[:_QUOTED_MAX]}: no matching entries in group file")
