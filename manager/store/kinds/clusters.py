"""The cluster: one object."""

from __future__ import annotations

from manager.store.kinds.kind import Kind
from proto.objects_pb2 import Cluster

CLUSTERS = Kind(
    name="cluster",
    plural="clusters",
    message=Cluster,
    names=lambda cluster: (cluster.spec.name,),
    labels=lambda cluster: cluster.spec.labels,
)
