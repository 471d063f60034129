"""What the daemons of several hosts logged, as one story in order of time.

A daemon logs JSON lines: ``timestamp`` (ISO 8601, UTC), ``event`` (``noun.past_verb``), ``level``, and keys of which those
that end in ``_id`` and ``_ids`` name objects. All hosts of a testbed share one clock, so the order is the true one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ID_LENGTH = 12
_TOLD_APART = frozenset({"timestamp", "event", "level", "process"})
_FOLLOWED = ("task_id", "container_id", "exec_id")
"""Objects that belong to one other: who follows a task follows its container. A node or service concerns many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of one log.

    Attributes:
        at: ISO 8601, so that entries sort by it.
        fields: what else the line says, objects' IDs whole.
    """

    at: str
    host: int
    process: str
    event: str
    level: str
    fields: Mapping[str, Any]

    def objects(self) -> Iterator[tuple[str, str]]:
        """Key and ID of every object that the entry names; ``task_ids`` gives a ``task_id`` each."""
        for key, value in self.fields.items():
            if key.endswith("_id") and value:
                yield key, str(value)
            elif key.endswith("_ids") and isinstance(value, list | dict):
                yield from ((key[:-1], str(one)) for one in value)

    def __str__(self) -> str:
        said = " ".join(f"{key}={_short(key, value)}" for key, value in self.fields.items())
        mark = {"warning": "! ", "error": "!! ", "critical": "!! "}.get(self.level, "")
        return f"{self.at[11:23]} h{self.host} {self.process:8} {mark}{self.event} {said}".rstrip()


def read(host: int, log: str) -> list[Entry]:
    """The entries of one host's log; what is no JSON line (a traceback, a library's word) is an entry of its own."""
    found: list[Entry] = []
    for line in log.splitlines():
        event: Any = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            fields = {key: value for key, value in event.items() if key not in _TOLD_APART}
            process, level = str(event.get("process", "node")), str(event.get("level", "info"))
            found.append(Entry(str(event.get("timestamp", "")), host, process, str(event["event"]), level, fields))
        elif line.strip():
            found.append(Entry(found[-1].at if found else "", host, "?", line, "error", {}))
    return found


def story(entries: Iterable[Entry], about: Collection[str] = (), *, since: str = "") -> list[Entry]:
    """What happened, in order.

    Args:
        about: whole or shortened IDs of the objects concerned; none means all. Tasks and containers that are named
            together with one of them are followed too.
        since: ISO 8601; nothing before it.

    Returns:
        The entries that name one of these objects; those that name no task or container and so concern all (leaders,
        nodes, sessions); and every warning and error.
    """
    ordered = sorted((entry for entry in entries if entry.at >= since), key=lambda entry: entry.at)
    if not about:
        return ordered
    wanted = set(about)

    def is_wanted(object_id: str) -> bool:
        return object_id in wanted or object_id[:ID_LENGTH] in wanted

    while True:
        linked = {
            object_id
            for entry in ordered
            if any(is_wanted(object_id) for _, object_id in entry.objects())
            for key, object_id in entry.objects()
            if key in _FOLLOWED and entry.fields.get(key) and not is_wanted(object_id)
        }
        if not linked:
            break
        wanted |= linked

    def concerns(entry: Entry) -> bool:
        objects = list(entry.objects())
        if entry.level in ("warning", "error", "critical") or any(is_wanted(object_id) for _, object_id in objects):
            return True
        return entry.level != "debug" and not any(key in (*_FOLLOWED, "service_id") for key, _ in objects)

    return [entry for entry in ordered if concerns(entry)]


def _short(key: str, value: Any) -> str:
    if key.endswith("_id"):
        return str(value)[:ID_LENGTH]
    if key.endswith("_ids") and isinstance(value, list):
        return ",".join(str(one)[:ID_LENGTH] for one in value)
    text = str(value)
    return repr(text) if " " in text else text
