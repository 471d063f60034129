"""A cluster's authority and nodes, for tests of what stands on certificates."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pki.authority import RootCA
from pki.certificates import Role
from pki.identifiers import new_id
from pki.node_certificate import NodeCredentials, issue_credentials

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@dataclass
class Authority:
    """A root and what it issues."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    cluster_id: str = field(default_factory=new_id)
    root: RootCA = field(init=False)

    def __post_init__(self) -> None:
        self.root = RootCA.create(self.now)

    def credentials(
        self,
        role: Role = Role.MANAGER,
        *,
        node_id: str | None = None,
        lifetime: timedelta = timedelta(hours=1),
        now: datetime | None = None,
    ) -> NodeCredentials:
        return issue_credentials(
            self.root,
            node_id=node_id or new_id(),
            role=role,
            cluster_id=self.cluster_id,
            lifetime=lifetime,
            now=now or self.now,
        )
