"""Secrets and configs: created once, never changed but for their labels, not removed while in use (A10.14, A10.16).

The two are one thing with two names, payloads of tasks.
"""

from __future__ import annotations

import hmac

from manager.control.errors import InvalidArgumentError
from manager.control.filters import OBJECT_KEYS
from manager.control.objects import Managed
from manager.control.validation import validate_config_spec, validate_secret_spec
from manager.store import CONFIGS, SECRETS
from proto.objects_pb2 import Config, Secret


def _change_labels(changed: Secret | Config, wanted: Secret | Config) -> None:
    """Anything but labels in the wanted spec must be as it is, or absent. Raises: InvalidArgumentError."""
    spec, present = wanted.spec, changed.spec
    if spec.name != present.name or (spec.data and not hmac.compare_digest(spec.data, present.data)):
        raise InvalidArgumentError("only updates to Labels are allowed")
    present.labels.clear()
    present.labels.update(spec.labels)


MANAGED_SECRETS = Managed[Secret](
    SECRETS,
    validate=lambda secret: validate_secret_spec(secret.spec),
    change=_change_labels,
    filter_keys=OBJECT_KEYS | {"names"},
)

MANAGED_CONFIGS = Managed[Config](
    CONFIGS,
    validate=lambda config: validate_config_spec(config.spec),
    change=_change_labels,
)
