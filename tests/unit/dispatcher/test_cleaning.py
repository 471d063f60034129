"""Control characters of hosts and errors do not get into the store."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from manager.dispatcher import nodes, status
from manager.dispatcher.cleaning import clean
from proto.dispatcher_pb2 import SessionRequest, TaskStatusUpdate
from proto.objects_pb2 import (
    EngineDescription,
    NetworkAttachment,
    NodeDescription,
    PluginDescription,
    PortStatus,
    TaskState,
    TaskStatus,
    TLSInfo,
)
from proto.specs_pb2 import Platform, PortConfig, Resources
from tests.unit.dispatcher.support import make_node, make_task

NOW = Timestamp(seconds=1_800_000_000)
EVIL, SHOWN = "x\x1b[2J\ny\x9b", "x[2J y"


def hostile_description() -> NodeDescription:
    return NodeDescription(
        hostname=EVIL,
        platform=Platform(os=EVIL, architecture="amd64"),
        resources=Resources(nano_cpus=7),
        engine=EngineDescription(
            engine_version=EVIL, labels={EVIL: EVIL}, plugins=[PluginDescription(type="Log", name=EVIL)]
        ),
    )


def test_a_description_loses_its_control_characters_wherever_they_are() -> None:
    description = hostile_description()
    clean(description)
    assert description == NodeDescription(
        hostname=SHOWN,
        platform=Platform(os=SHOWN, architecture="amd64"),
        resources=Resources(nano_cpus=7),
        engine=EngineDescription(
            engine_version=SHOWN, labels={SHOWN: SHOWN}, plugins=[PluginDescription(type="Log", name=SHOWN)]
        ),
    )


def test_the_root_that_a_node_trusts_stays_what_it_is() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    description = NodeDescription(hostname="a", tls_info=TLSInfo(trust_root=pem))
    clean(description)
    assert description.tls_info.trust_root == pem
    description.tls_info.trust_root = f"{pem}\x1b[2J"
    clean(description)
    assert description.tls_info.trust_root == f"{pem}[2J"


def test_a_session_brings_none_into_the_store_at_first_nor_later() -> None:
    request = SessionRequest(description=hostile_description(), addr=EVIL, boot_nonce="a")
    for changed in (nodes.registered(make_node("n1"), request, NOW), nodes.described(make_node("n1"), request)):
        assert changed is not None
        assert (changed.description.hostname, changed.status.addr) == (SHOWN, SHOWN)
        assert "\\033" not in str(changed)


def test_a_report_brings_none_into_the_store() -> None:
    update = TaskStatusUpdate(
        task_id="t1",
        status=TaskStatus(
            state=TaskState.TASK_STATE_RUNNING,
            err=EVIL,
            message=EVIL,
            port_status=PortStatus(ports=[PortConfig(name=EVIL, target_port=80)]),
        ),
        networks_attachments=[NetworkAttachment(network_id="bridge", addresses=[EVIL])],
    )
    update.status.container_status.container_id = EVIL
    task = status.apply(make_task("t1", "n1"), update, NOW)
    assert task is not None
    assert (task.status.err, task.status.message, task.status.container_status.container_id) == (SHOWN,) * 3
    assert task.status.port_status.ports[0].name == SHOWN
    assert "\\033" not in str(task)
