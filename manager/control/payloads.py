"""Secrets and configs: created once, never changed but for their labels, not removed while in use (A10.14, A10.16)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from manager.control.errors import AlreadyExistsError, InvalidArgumentError
from manager.control.lookup import check_version
from manager.store import Working
from proto.objects_pb2 import Config, Secret, Service
from proto.specs_pb2 import ConfigSpec, SecretSpec

P = TypeVar("P", Secret, Config)


def create_secret(working: Working, spec: SecretSpec, *, secret_id: str, now: Timestamp) -> Secret:
    """Add a secret of a valid spec. Raises: AlreadyExistsError."""
    if working.secrets.by_name(spec.name) is not None:
        raise AlreadyExistsError(f"secret {spec.name} already exists")
    secret = Secret(id=secret_id, created_at=now, updated_at=now, spec=spec)
    working.create(secret)
    return secret


def create_config(working: Working, spec: ConfigSpec, *, config_id: str, now: Timestamp) -> Config:
    """Add a config of a valid spec. Raises: AlreadyExistsError."""
    if working.configs.by_name(spec.name) is not None:
        raise AlreadyExistsError(f"config {spec.name} already exists")
    config = Config(id=config_id, created_at=now, updated_at=now, spec=spec)
    working.create(config)
    return config


def update_labels(working: Working, item: P, spec: SecretSpec | ConfigSpec, *, version: int, now: Timestamp) -> P:
    """Give a secret or config other labels; anything else in ``spec`` must be as it is, or absent.

    Raises:
        OutOfSequenceError, InvalidArgumentError.
    """
    check_version(item, version)
    if spec.name != item.spec.name or (spec.data and not hmac.compare_digest(spec.data, item.spec.data)):
        raise InvalidArgumentError("only updates to Labels are allowed")
    changed = type(item)()
    changed.CopyFrom(item)
    changed.spec.labels.clear()
    changed.spec.labels.update(spec.labels)
    changed.updated_at.CopyFrom(now)
    working.update(changed)
    return changed


def remove_payload(working: Working, item: Secret | Config, users: Iterable[Service]) -> None:
    """Remove a secret or config.

    Args:
        users: the services whose spec names it.

    Raises:
        InvalidArgumentError: there are users.
    """
    names = sorted(service.spec.name for service in users if not service.pending_delete)
    if names:
        kind = "secret" if isinstance(item, Secret) else "config"
        raise InvalidArgumentError(
            f"{kind} '{item.spec.name}' is in use by the following "
            f"service{'s' if len(names) > 1 else ''}: {', '.join(names)}"
        )
    working.remove(item)


def without_data(secret: Secret) -> Secret:
    """A copy that may leave the managers: payloads go to the tasks that need them, never to a client."""
    copy = Secret()
    copy.CopyFrom(secret)
    copy.spec.ClearField("data")
    return copy
