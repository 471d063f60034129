"""Answers of the Engine API, as a small cluster gives them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

Object = dict[str, Any]


def ago(**parts: float) -> str:
    """A time as Go writes it: no zeros at the end."""
    return (datetime.now(UTC) - timedelta(**parts)).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"


def node(number: int, hostname: str, *, role: str = "worker", leader: bool = False, **changes: Any) -> Object:
    made: Object = {
        "ID": f"node{number}".ljust(25, "x"),
        "Version": {"Index": 10 + number},
        "CreatedAt": "2026-01-02T03:04:05.123456789Z",
        "UpdatedAt": "2026-01-02T03:04:05.123456789Z",
        "Spec": {"Labels": {}, "Role": role, "Availability": "active"},
        "Description": {
            "Hostname": hostname,
            "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 2_000_000_000, "MemoryBytes": 4_123_456_789},
            "Engine": {"EngineVersion": "28.2.2", "Labels": {"tier": "a"}},
            "TLSInfo": {},
        },
        "Status": {"State": "ready", "Addr": f"10.0.0.{number}"},
    }
    if role == "manager":
        made["ManagerStatus"] = {"Reachability": "reachable", "Addr": f"10.0.0.{number}:2377"}
        if leader:
            made["ManagerStatus"]["Leader"] = True
    made.update(changes)
    return made


def service(number: int, name: str, *, replicas: int | None = 2, **changes: Any) -> Object:
    made: Object = {
        "ID": f"svc{number}".ljust(25, "y"),
        "Version": {"Index": 20 + number},
        "CreatedAt": ago(minutes=5),
        "UpdatedAt": ago(minutes=5),
        "Spec": {
            "Name": name,
            "Labels": {},
            "TaskTemplate": {"ContainerSpec": {"Image": f"busybox:1@sha256:{'a' * 64}"}, "ForceUpdate": 0},
            "Mode": {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Mode": "vip"},
        },
        "Endpoint": {"Spec": {"Mode": "vip"}},
        "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 0},
    }
    made.update(changes)
    return made


def task(identifier: str, of: Object, slot: int, on: Object, state: str = "running", **changes: Any) -> Object:
    made: Object = {
        "ID": identifier.ljust(25, "z"),
        "Version": {"Index": 30},
        "CreatedAt": ago(minutes=3),
        "UpdatedAt": ago(minutes=3),
        "Labels": of["Spec"]["Labels"],
        "Spec": of["Spec"]["TaskTemplate"],
        "ServiceID": of["ID"],
        "NodeID": on["ID"],
        "Status": {"Timestamp": ago(minutes=2, seconds=10), "State": state, "PortStatus": {}},
        "DesiredState": "running" if state == "running" else "shutdown",
    }
    if slot:
        made["Slot"] = slot  # a global service's task has none
    made.update(changes)
    return made


def cluster() -> Object:
    """The cluster as /info shows it; /swarm shows the join tokens too."""
    return {
        "ID": "cluster",
        "Version": {"Index": 3},
        "CreatedAt": ago(hours=5),
        "UpdatedAt": ago(hours=4),
        "Spec": {
            "Name": "default",
            "Labels": {},
            "Orchestration": {"TaskHistoryRetentionLimit": 5},
            "Raft": {
                "SnapshotInterval": 10_000,
                "KeepOldSnapshots": 0,
                "LogEntriesForSlowFollowers": 500,
                "ElectionTick": 10,
                "HeartbeatTick": 1,
            },
            "Dispatcher": {"HeartbeatPeriod": 5_000_000_000},
            "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000},
            "TaskDefaults": {},
            "EncryptionConfig": {"AutoLockManagers": False},
        },
        "TLSInfo": {"TrustRoot": "a root", "CertIssuerSubject": "c3ViamVjdA==", "CertIssuerPublicKey": "a2V5"},
        "RootRotationInProgress": False,
        "DefaultAddrPool": ["10.0.0.0/8"],
        "SubnetSize": 24,
        "DataPathPort": 4789,
    }


def info(me: Object) -> Object:
    return {
        "ID": "engine",
        "Containers": 3,
        "ContainersRunning": 2,
        "ContainersPaused": 0,
        "ContainersStopped": 1,
        "Images": 4,
        "Driver": "overlay2",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2",
        "KernelVersion": "6.1.0",
        "OperatingSystem": "Debian GNU/Linux 12",
        "OSType": "linux",
        "Architecture": "x86_64",
        "NCPU": 2,
        "MemTotal": 4_123_456_789,
        "Name": "host-1",
        "ServerVersion": "28.2.2",
        "Swarm": {
            "NodeID": me["ID"],
            "NodeAddr": me["Status"]["Addr"],
            "LocalNodeState": "active",
            "ControlAvailable": True,
            "Error": "",
            "RemoteManagers": [{"NodeID": me["ID"], "Addr": "10.0.0.1:2377"}],
            "Nodes": 2,
            "Managers": 1,
            "Cluster": cluster(),
        },
    }
