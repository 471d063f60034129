"""Images in the shapes of the Engine API, and the filters of its lists. Pure.

Source: Engine API ``ImageSummary``, ``ImageInspect``, ``HistoryResponseItem``; moby ``daemon/images/images.go``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from base.labels import has_any_label, has_labels
from base.times import moment_s
from runtime.images.errors import InvalidArgumentError
from runtime.images.manifests import epoch_of
from runtime.images.patterns import Pattern, matches_any
from runtime.images.records import Entry, ImageRecords
from runtime.images.reference import Reference, parse_reference
from runtime.images.types import ImageHistoryItem

Filters = Mapping[str, Sequence[str]]
LIST_FILTERS = frozenset({"dangling", "label", "label!", "before", "since", "reference", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})


def summary(entry: Entry) -> dict[str, object]:
    """One element of ``GET /images/json``."""
    image = entry.image
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Created": epoch_of(image.created),
        "Size": image.size_bytes,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": image.config.Labels,
    }


def details(entry: Entry, upper_layers: Sequence[str]) -> dict[str, object]:
    """``GET /images/{name}/json``; ``upper_layers`` are the directories of the layers, topmost first."""
    image, config = entry.image, entry.config
    tagged = entry.record.LastTagTime or "0001-01-01T00:00:00Z"
    data = {"LowerDir": ":".join(upper_layers[1:]), "UpperDir": upper_layers[0]} if upper_layers else {}
    return {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": entry.record.Comment or config.comment or "",
        "Created": image.created or None,
        "DockerVersion": config.docker_version or "",
        "Author": config.author or "",
        "Config": msgspec.to_builtins(image.config),
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.size_bytes,
        "GraphDriver": {"Name": "overlay2", "Data": data},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": tagged},
    }


def history(entry: Entry, layer_sizes: Sequence[int]) -> list[ImageHistoryItem]:
    """``GET /images/{name}/history``, newest first; ``layer_sizes`` in bytes, lowest layer first."""
    sizes = list(layer_sizes)
    items = list[ImageHistoryItem]()
    for step in entry.config.history or []:
        size = sizes.pop(0) if sizes and not step.empty_layer else 0
        items.append(
            ImageHistoryItem(
                Id="<missing>",
                Created=epoch_of(step.created),
                CreatedBy=step.created_by or "",
                Tags=None,
                Size=size,
                Comment=step.comment or "",
            )
        )
    if not items:
        items = [ImageHistoryItem("<missing>", epoch_of(entry.image.created), "", None, sum(sizes), "")]
    items.reverse()
    items[0] = msgspec.structs.replace(items[0], Id=entry.image.id, Tags=list(entry.image.repo_tags) or None)
    return items


def select(records: ImageRecords, filters: Filters, *, now: float) -> list[Entry]:
    """Images that pass ``filters``, newest first. Raises InvalidArgumentError, ImageNotFoundError (before, since)."""
    check_filters(filters, LIST_FILTERS)
    before = min((epoch_of(records.get(name).image.created) for name in filters.get("before", ())), default=None)
    since = max((epoch_of(records.get(name).image.created) for name in filters.get("since", ())), default=None)
    patterns = [Pattern(text) for text in filters.get("reference", ())]
    found = []
    for entry in records:
        created = epoch_of(entry.image.created)
        if (before is not None and created >= before) or (since is not None and created <= since):
            continue
        if matches(entry, filters, now=now) and (not patterns or matches_any(patterns, _names(entry))):
            found.append(entry)
    return sorted(found, key=lambda entry: epoch_of(entry.image.created), reverse=True)


def check_filters(filters: Filters, known: frozenset[str]) -> None:
    """Raises InvalidArgumentError for a filter that does not exist."""
    for name in filters:
        if name not in known:
            raise InvalidArgumentError(f"invalid filter '{name}'")


def matches(entry: Entry, filters: Filters, *, now: float) -> bool:
    """The filters that look at one image alone, but for ``reference``."""
    labels = entry.image.config.Labels or {}
    if "dangling" in filters and truth("dangling", filters["dangling"]) != is_dangling(entry):
        return False
    if not has_labels(labels, filters.get("label", ())) or has_any_label(labels, filters.get("label!", ())):
        return False
    return not any(epoch_of(entry.image.created) > moment(text, now=now) for text in filters.get("until", ()))


def _names(entry: Entry) -> list[Reference]:
    return [parse_reference(name) for name in (*entry.image.repo_tags, *entry.image.repo_digests)]


def is_dangling(entry: Entry) -> bool:
    """Nobody calls it by a tag any more."""
    return not entry.record.Tags


def truth(name: str, values: Sequence[str]) -> bool:
    """A filter that is true or false. Raises InvalidArgumentError."""
    words = {"1": True, "true": True, "t": True, "0": False, "false": False, "f": False}
    found = {words.get(value.lower()) for value in values}
    if len(found) != 1 or None in found:
        raise InvalidArgumentError(f"invalid filter '{name}={','.join(values)}'")
    return found == {True}


def moment(text: str, *, now: float) -> float:
    """Seconds since the epoch of a timestamp, an RFC 3339 time, or a Go duration before ``now``."""
    try:
        return moment_s(text, now)
    except ValueError:
        raise InvalidArgumentError(f"invalid filter 'until={text}': want a time or a duration such as 24h") from None
