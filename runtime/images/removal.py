"""What ``docker image rm`` takes away: decisions, no I/O.

Source: moby ``daemon/images/image_delete.go`` (order of checks, texts).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runtime.images.errors import ImageConflictError
from runtime.images.records import ImageRecord, short_id
from runtime.images.reference import parse_reference
from runtime.images.types import ContainerUse


class Removal(msgspec.Struct, frozen=True):
    """Canonical names to take away, and whether the image itself goes."""

    untag: tuple[str, ...]
    delete: bool


def decide_removal(
    record: ImageRecord, reference: str | None, users: Sequence[ContainerUse], *, force: bool
) -> Removal:
    """Decide one removal.

    Args:
        record: the image that was found.
        reference: canonical name it was asked by, None if by ID.
        users: containers made from it, in any state.

    Raises:
        ImageConflictError: in dockerd's words.
    """
    names = [*record.Tags, *record.Digests]
    if reference is not None:
        return _by_name(record, names, reference, users, force=force)
    repositories = {parse_reference(name).name for name in names}
    if (len(record.Tags) > 1 or len(repositories) > 1) and not force:
        raise _conflict(record, "must be forced", "image is referenced in multiple repositories")
    _refuse_if_used(record, users, force=force)
    return Removal(tuple(names), delete=True)


def _by_name(
    record: ImageRecord, names: list[str], reference: str, users: Sequence[ContainerUse], *, force: bool
) -> Removal:
    left = [name for name in names if name != reference]
    repository = parse_reference(reference).name
    if reference in record.Tags:
        same = [name for name in left if parse_reference(name).name == repository]
        if same and all(name in record.Digests for name in same):
            # only digests of this repository remain: they were there for the tag's sake
            left = [name for name in left if name not in same]
    untag = tuple(name for name in names if name not in left)
    if left:
        return Removal(untag, delete=False)
    if users and not force:
        shown = parse_reference(reference).familiar
        raise ImageConflictError(
            f'conflict: unable to remove repository reference "{shown}" (must force) - '
            f"container {short_id(users[0].container_id)} is using its referenced image {short_id(record.ID)}"
        )
    # With force the name goes; the image stays, nameless, while a container runs on it.
    return Removal(untag, delete=not any(user.running for user in users))


def _refuse_if_used(record: ImageRecord, users: Sequence[ContainerUse], *, force: bool) -> None:
    for user in users:
        if user.running:
            container = short_id(user.container_id)
            raise _conflict(record, "cannot be forced", f"image is being used by running container {container}")
    if users and not force:
        container = short_id(users[0].container_id)
        raise _conflict(record, "must be forced", f"image is being used by stopped container {container}")


def _conflict(record: ImageRecord, how: str, why: str) -> ImageConflictError:
    return ImageConflictError(f"conflict: unable to delete {short_id(record.ID)} ({how}) - {why}")
