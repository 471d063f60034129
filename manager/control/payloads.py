"""Secrets and configs: created once, never changed but for their labels, not removed while in use (A10.14, A10.16).

The two are one thing with two names. What they differ in is a ``PayloadKind``; the functions take either.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from manager.control import filters, validation
from manager.control.errors import AlreadyExistsError, InvalidArgumentError
from manager.control.lookup import check_version
from manager.store import CONFIGS as CONFIG_KIND
from manager.store import SECRETS as SECRET_KIND
from manager.store import Table, View, Working
from proto.objects_pb2 import Config, Secret, Service

P = TypeVar("P", Secret, Config)


@dataclass(frozen=True)
class PayloadKind(Generic[P]):
    """What is the one's and not the other's.

    Attributes:
        word: the kind, as messages to users name it.
        table: the objects of the kind, by ID and reference.
        by_name: the one of exactly that name.
        users: the services whose spec names the object of that ID.
        validate: refuses a spec that cannot be (InvalidArgumentError, UnimplementedError).
        filter_keys: the filters a list takes.
        shown: what may leave the managers.
    """

    word: str
    table: Callable[[View], Table[P]]
    by_name: Callable[[View, str], P | None]
    users: Callable[[View, str], Collection[Service]]
    validate: Callable[[P], None]
    filter_keys: Collection[str]
    shown: Callable[[P], P]


def without_data(secret: Secret) -> Secret:
    """A copy that may leave the managers: payloads go to the tasks that need them, never to a client."""
    copy = Secret()
    copy.CopyFrom(secret)
    copy.spec.ClearField("data")
    return copy


SECRETS = PayloadKind[Secret](
    word="secret",
    table=lambda view: view.secrets,
    by_name=lambda view, name: view.secrets.by_name(name),
    users=lambda view, secret_id: view.services.naming(SECRET_KIND, secret_id),
    validate=lambda secret: validation.validate_secret_spec(secret.spec),
    filter_keys=filters.SECRET_KEYS,
    shown=without_data,
)

CONFIGS = PayloadKind[Config](
    word="config",
    table=lambda view: view.configs,
    by_name=lambda view, name: view.configs.by_name(name),
    users=lambda view, config_id: view.services.naming(CONFIG_KIND, config_id),
    validate=lambda config: validation.validate_config_spec(config.spec),
    filter_keys=filters.CONFIG_KEYS,
    shown=lambda config: config,
)


def create(working: Working, kind: PayloadKind[P], wanted: P, *, payload_id: str, now: Timestamp) -> P:
    """Add a secret or config.

    Args:
        wanted: its spec, which is valid; the rest is filled in.

    Raises:
        AlreadyExistsError.
    """
    if kind.by_name(working, wanted.spec.name) is not None:
        raise AlreadyExistsError(f"{kind.word} {wanted.spec.name} already exists")
    item = type(wanted)(id=payload_id, created_at=now, updated_at=now)
    item.spec.MergeFrom(wanted.spec)
    working.create(item)
    return item


def update_labels(working: Working, item: P, wanted: P, *, version: int, now: Timestamp) -> P:
    """Give a secret or config other labels; anything else in the wanted spec must be as it is, or absent.

    Raises:
        OutOfSequenceError, InvalidArgumentError.
    """
    check_version(item, version)
    spec = wanted.spec
    if spec.name != item.spec.name or (spec.data and not hmac.compare_digest(spec.data, item.spec.data)):
        raise InvalidArgumentError("only updates to Labels are allowed")
    changed = type(item)()
    changed.CopyFrom(item)
    changed.spec.labels.clear()
    changed.spec.labels.update(spec.labels)
    changed.updated_at.CopyFrom(now)
    working.update(changed)
    return changed


def remove(working: Working, kind: PayloadKind[P], item: P) -> None:
    """Remove a secret or config.

    Raises:
        InvalidArgumentError: services name it.
    """
    names = sorted(service.spec.name for service in kind.users(working, item.id) if not service.pending_delete)
    if names:
        raise InvalidArgumentError(
            f"{kind.word} '{item.spec.name}' is in use by the following "
            f"service{'s' if len(names) > 1 else ''}: {', '.join(names)}"
        )
    working.remove(item)
