"""What every stored object has, whatever its kind."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.timestamp_pb2 import Timestamp

from proto.objects_pb2 import Version


class StoredObject(Protocol):
    """A message of proto/objects.proto with the fields that are alike in all of them."""

    DESCRIPTOR: Descriptor
    id: str

    @property
    def version(self) -> Version: ...
    @property
    def created_at(self) -> Timestamp: ...
    @property
    def updated_at(self) -> Timestamp: ...

    # The names are protobuf's, hence N802.
    def CopyFrom(self, other_msg: Self, /) -> None: ...  # noqa: N802
    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


T = TypeVar("T", bound=StoredObject)
