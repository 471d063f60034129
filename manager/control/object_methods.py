"""The five RPCs of a kind that its declaration serves (``Managed``). They and their fields are called alike, but for the
kind's name: CreateSecret, GetSecret, ListSecrets, UpdateSecret, RemoveSecret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol

import structlog
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from base.marked_fields import without_marked
from manager.control import objects
from manager.control.filters import filter_values, object_filter
from manager.control.lookup import find
from manager.control.networks import MANAGED_NETWORKS
from manager.control.objects import Managed, S
from manager.control.parts import encoded
from manager.control.payloads import MANAGED_CONFIGS, MANAGED_SECRETS
from manager.control.transactions import Transactions
from manager.store import Working
from proto import control_pb2 as pb
from proto.options_pb2 import write_only

log = structlog.get_logger(__name__)

MANAGED: tuple[Managed[Any], ...] = (MANAGED_SECRETS, MANAGED_CONFIGS, MANAGED_NETWORKS)
"""The kinds that are served by their declaration. Of each the functions are given its own objects, hence the Any."""


class _WithSpec(Protocol):
    """CreateXRequest."""

    @property
    def spec(self) -> Message: ...


class _WithRef(Protocol):
    """GetXRequest, RemoveXRequest."""

    ref: str


class _WithFilters(Protocol):
    """ListXsRequest."""

    @property
    def filters(self) -> pb.Filters: ...


class _Update(_WithSpec, _WithRef, Protocol):
    """UpdateXRequest."""

    version: int


class ObjectMethods(Generic[S]):
    """Answers the RPCs of one kind on the leader."""

    def __init__(
        self,
        managed: Managed[S],
        transactions: Transactions,
        *,
        now: Callable[[], Timestamp],
        make_id: Callable[[], str],
    ) -> None:
        self._managed, self._kind = managed, managed.kind
        self._transactions = transactions
        self._now, self._make_id = now, make_id

    def by_name(self) -> dict[str, Callable[..., Awaitable[Message]]]:
        """The methods by the names of their RPCs."""
        word = self._managed.word
        return {
            f"Create{word}": self.create,
            f"Get{word}": self.get,
            f"List{word}s": self.list,
            f"Update{word}": self.update,
            f"Remove{word}": self.remove,
        }

    async def create(self, request: _WithSpec) -> Message:
        wanted = self._managed.wanted(request.spec)
        self._managed.validate(wanted)
        object_id = self._make_id()
        obj = await self._transactions.write(
            lambda working: objects.create(working, self._managed, wanted, object_id=object_id, now=self._now())
        )
        log.info("object.created", kind=self._kind.name, id=obj.id, name=self._kind.name_of(obj))
        return self._with_object("Create", self._as_stored(obj))

    async def get(self, request: _WithRef) -> Message:
        view = await self._transactions.read()
        return self._with_object("Get", find(view, self._kind, request.ref))

    async def list(self, request: _WithFilters) -> Message:
        matches = object_filter(self._kind, filter_values(request.filters, self._managed.filter_keys))
        view = await self._transactions.read()
        shown = [without_marked(obj, write_only) for obj in view.of(self._kind) if matches(obj)]
        return _response(f"List{self._managed.word}s", **{self._kind.plural: await encoded(shown)})

    async def update(self, request: _Update) -> Message:
        wanted = self._managed.wanted(request.spec)

        def change(working: Working) -> S:
            obj = find(working, self._kind, request.ref)
            return objects.update(working, self._managed, obj, wanted, version=request.version, now=self._now())

        return self._with_object("Update", self._as_stored(await self._transactions.write(change)))

    async def remove(self, request: _WithRef) -> Message:
        def change(working: Working) -> S:
            obj = find(working, self._kind, request.ref)
            self._managed.removable(working, obj)
            working.remove(obj)
            return obj

        obj = await self._transactions.write(change)
        log.info("object.removed", kind=self._kind.name, id=obj.id, name=self._kind.name_of(obj))
        return _response(f"Remove{self._managed.word}")

    def _as_stored(self, written: S) -> S:
        """What was just written, with the version it got."""
        return self._transactions.view.of(self._kind).get(written.id) or written

    def _with_object(self, verb: str, obj: S) -> Message:
        return _response(f"{verb}{self._managed.word}", **{self._kind.name: without_marked(obj, write_only)})


def _response(rpc: str, **fields: object) -> Message:
    made: Message = getattr(pb, f"{rpc}Response")(**fields)
    return made
