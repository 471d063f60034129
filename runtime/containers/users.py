"""Who the process runs as: "user[:group]" looked up in the container's own /etc/passwd and /etc/group (moby oci)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from runtime.errors import InvalidParameterError

_ID_MAX = 2**31 - 1
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
        if (fields[0] == name) if name and not name.isdecimal() else (fields[2] == (name or "0")):
            login, home = fields[0], fields[5] or "/"
            uid, gid = _number(fields[2]), _number(fields[3])
            break
    else:
        if name and not name.isdecimal():
            raise InvalidParameterError(f"unable to find user {name}: no matching entries in passwd file")
        uid = _number(name or "0")
    groups = list(_entries(group, 3))
    if group_name:
        gid = _group_id(group_name, groups)
        additional: set[int] = set()
    else:
        additional = {_number(fields[2]) for fields in groups if len(fields) > 3 and login in fields[3].split(",")}
    additional |= {_group_id(item, groups) for item in group_add}
    return User(uid, gid, tuple(sorted(additional)), home)


def read_inside(root: Path, name: str) -> str:
    """Text of /etc/passwd or /etc/group below ``root``, "" when there is none.

    A symbolic link inside an image could point at the host's files, so links are refused (O_NOFOLLOW) in both parts.
    """
    try:
        etc = os.open(root / "etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=etc), "rb") as file:
            return file.read(_FILE_SIZE_MAX).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(etc)


def _entries(text: str, fields_min: int) -> list[list[str]]:
    rows = [line.strip().split(":") for line in text.splitlines() if line and not line.startswith("#")]
    return [row for row in rows if len(row) >= fields_min]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) > _ID_MAX:
        raise InvalidParameterError(f"uids and gids must be in range 0-{_ID_MAX}, got {text!r}")
    return int(text)


def _group_id(name: str, groups: Sequence[Sequence[str]]) -> int:
    for fields in groups:
        if fields[0] == name:
            return _number(fields[2])
    if name.isdecimal():
        return _number(name)
    raise InvalidParameterError(f"unable to find group {name}: no matching entries in group file")
