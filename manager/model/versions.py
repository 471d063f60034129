"""A service and the versions of its spec."""

from __future__ import annotations

from proto.objects_pb2 import Service


def copy_service(service: Service) -> Service:
    copy = Service()
    copy.CopyFrom(service)
    return copy
