"""Several Compose files as one."""

from __future__ import annotations

from cli.composefile.source import Path_, Source

# Lists of a service that name something: an entry of a later file takes the place of the one with the same name.
_KEYED = {"volumes": "target", "secrets": "source", "configs": "source", "ports": "published"}
_REPLACED = {"command", "entrypoint", "aliases"}
_WHOLE = {"networks", "volumes", "secrets", "configs"}
_AS_MAPPING = {"environment", "labels", "sysctls", "extra_hosts", "networks"}


def merge(base: Source, over: Source) -> Source:
    """One file over another, as Docker's command merges them.

    Mappings merge key by key, also where the one file writes a list of ``key=value`` and the other a mapping; lists
    are joined, an entry with the same target (volumes), published port, source (secrets, configs) or text taking the
    place of the earlier one; ``command``, ``entrypoint``, ``aliases`` and everything else are replaced, also what is
    said of a network, volume, secret or config. Lists with such names come out in the order of the names. Paths stay
    relative to the first file.
    """
    merger = _Merger(base, over)
    value = merger.mappings((), base.value, over.value, (), ())
    return Source(base.name, base.directory, value, merger.lines)


class _Merger:
    def __init__(self, base: Source, over: Source) -> None:
        self._base, self._over = base, over
        self.lines: dict[Path_, str] = {}

    def merge(self, path: Path_, base: object, over: object, from_base: Path_, from_over: Path_) -> object:
        key = path[-1] if path else ""
        if len(path) == 2 and path[0] in _WHOLE:
            return self._take(path, over, self._over, from_over)
        if key in _AS_MAPPING and (isinstance(base, dict) or isinstance(over, dict)):
            base, over = _as_mapping(base), _as_mapping(over)
        if isinstance(base, dict) and over is None:
            return self._take(path, base, self._base, from_base)  # named again and nothing said of it
        if isinstance(base, dict) and isinstance(over, dict):
            return self.mappings(path, base, over, from_base, from_over)
        if isinstance(base, list) and isinstance(over, list) and key not in _REPLACED:
            return self._lists(path, base, over, from_base, from_over)
        return self._take(path, over, self._over, from_over)

    def mappings(
        self, path: Path_, base: dict[str, object], over: dict[str, object], from_base: Path_, from_over: Path_
    ) -> dict[str, object]:
        self._mark(path, self._base, from_base)
        made = {}
        for name in {**base, **over}:
            inner, of_base, of_over = (*path, name), (*from_base, name), (*from_over, name)
            lists = base.get(name, []), over.get(name, [])
            if (
                len(path) == 2
                and path[0] == "services"
                and name in _KEYED
                and all(isinstance(one, list) for one in lists)
            ):
                made[name] = self.merge(inner, *lists, of_base, of_over)
            elif name in base and name in over:
                made[name] = self.merge(inner, base[name], over[name], of_base, of_over)
            elif name in over:
                made[name] = self._take(inner, over[name], self._over, of_over)
            else:
                made[name] = self._take(inner, base[name], self._base, of_base)
        return made

    def _lists(
        self, path: Path_, base: list[object], over: list[object], from_base: Path_, from_over: Path_
    ) -> list[object]:
        self._mark(path, self._base, from_base)
        kind = str(path[-1]) if path else ""
        entries = {_identity(kind, item): (item, self._base, (*from_base, i)) for i, item in enumerate(base)}
        entries |= {_identity(kind, item): (item, self._over, (*from_over, i)) for i, item in enumerate(over)}
        names = sorted(entries, key=_rank) if kind in _KEYED else list(entries)
        return [self._take((*path, index), *entries[name]) for index, name in enumerate(names)]

    def _take(self, path: Path_, value: object, source: Source, origin: Path_) -> object:
        """A value of one file, with its places."""
        self._mark(path, source, origin)
        if isinstance(value, dict):
            return {key: self._take((*path, key), item, source, (*origin, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._take((*path, i), item, source, (*origin, i)) for i, item in enumerate(value)]
        return value

    def _mark(self, path: Path_, source: Source, origin: Path_) -> None:
        self.lines[path] = source.where(origin)


def _identity(kind: str, item: object) -> str:
    """What makes two entries of a list the same one."""
    if kind not in _KEYED:
        return repr(item)
    if isinstance(item, dict):
        return str(item.get(_KEYED[kind]) or item.get("target"))
    parts = str(item).partition("/")[0].split(":") if kind == "ports" else str(item).split(":")
    if kind == "volumes":
        return parts[1] if len(parts) > 1 and parts[1].startswith("/") else parts[0]
    return parts[-2] if kind == "ports" and len(parts) > 1 else parts[-1]


def _rank(name: str) -> tuple[int, str]:
    """Published ports, the first of a range, as numbers; else names."""
    number = name.partition("-")[0]
    return (int(number[:9]), "") if number.isdecimal() else (0, name)


def _as_mapping(value: object) -> object:
    """A list of ``key=value`` as a mapping; ``key`` alone has no value, which is taken from the environment later."""
    if not isinstance(value, list):
        return value
    pairs = (str(item).partition("=") for item in value)
    return {key: item if separator else None for key, separator, item in pairs}
