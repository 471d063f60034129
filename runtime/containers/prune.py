"""Which containers ``docker container prune`` removes. Pure.

Source: moby ``daemon/prune.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from base.labels import has_any_label
from base.times import moment_s
from runtime.errors import InvalidParameterError
from runtime.types import ContainerSummary


class ContainerPruneReport(msgspec.Struct):
    """The answer of ``POST /containers/prune``, with an empty list where the API has null."""

    ContainersDeleted: list[str] = []
    SpaceReclaimed: int = 0


def query(filters: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The filters of the list to choose from."""
    wanted = {"status": ["created", "exited", "dead"]}
    return wanted | ({"label": list(filters["label"])} if "label" in filters else {})


def choose(containers: Iterable[ContainerSummary], filters: Mapping[str, Sequence[str]], *, now_s: float) -> list[str]:
    """IDs of those that the filters leave. Raises: InvalidParameterError."""
    until_s = _until_s(filters.get("until", ()), now_s)
    spared = filters.get("label!", ())
    return [each.Id for each in containers if each.Created <= until_s and not has_any_label(each.Labels, spared)]


def _until_s(values: Sequence[str], now_s: float) -> float:
    if not values:
        return float("inf")
    if len(values) > 1:
        raise InvalidParameterError("more than one until filter specified")
    try:
        return moment_s(values[0], now_s)
    except ValueError:
        raise InvalidParameterError(f"invalid filter 'until={values[0]}'") from None
