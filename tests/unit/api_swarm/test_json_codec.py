"""The descriptor-driven converter: what it forgives, what it refuses, and that nothing is lost on the way."""

from __future__ import annotations

import json
from typing import cast

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from api.json_codec import (
    JSONError,
    decode,
    decode_json,
    encode,
    encode_json,
    format_timestamp,
    parse_json,
    parse_timestamp,
)
from proto.objects_pb2 import Cluster, ManagerStatus, Node, Secret, Service, Task, TaskState
from proto.specs_pb2 import (
    ClusterSpec,
    ConfigSpec,
    NodeRole,
    NodeSpec,
    RestartCondition,
    SecretSpec,
    ServiceSpec,
    UpdateConfig,
    UpdateOrder,
)
from tests.unit.api_swarm.strategies import messages

DOCKER_PY_SERVICE = b"""{
  "Name": "web",
  "Labels": null,
  "TaskTemplate": {
    "ContainerSpec": {"Image": "busybox", "Command": ["sleep", "9d"], "Healthcheck": {"Interval": 5000000000}},
    "RestartPolicy": {"Condition": "none", "Delay": 0, "MaxAttempts": 0, "Window": 0}
  },
  "Mode": {"replicated": {"Replicas": 2}},
  "UpdateConfig": {"Parallelism": 0, "FailureAction": "continue", "Order": "stop-first"}
}"""


def test_keys_match_in_any_case_as_docker_py_needs() -> None:
    spec = decode_json(ServiceSpec, DOCKER_PY_SERVICE)
    assert spec.mode.replicated.replicas == 2
    assert decode(ServiceSpec, {"MODE": {"gLoBaL": {}}}).mode.WhichOneof("mode") == "global"


def test_zero_that_was_sent_is_told_from_absent() -> None:
    policy = decode_json(ServiceSpec, DOCKER_PY_SERVICE).task_template.restart_policy
    assert policy.HasField("delay_ns")
    assert policy.delay_ns == 0
    assert policy.condition == RestartCondition.RESTART_CONDITION_NONE
    assert not decode(ServiceSpec, {}).task_template.restart_policy.HasField("delay_ns")


def test_null_and_unknown_keys_are_absent() -> None:
    spec = decode(ServiceSpec, {"Name": None, "Nonsense": {"deep": [1]}, "TaskTemplate": {"Networks": None}})
    assert spec.name == ""
    assert not spec.task_template.networks


def test_internal_fields_cross_in_no_direction() -> None:
    spec = decode(ServiceSpec, {"TaskTemplate": {"registryAuth": "stolen", "registry_auth": "stolen"}})
    assert spec.task_template.registry_auth == ""
    service = Service(id="x", spec_version=3, pending_delete=True)
    service.spec.task_template.registry_auth = "secret"
    assert set(encode(service)) == {"ID", "Spec"}
    assert b"secret" not in encode_json(service)


def test_write_only_fields_are_read_and_never_written() -> None:
    spec = decode(SecretSpec, {"Name": "pw", "Data": "aHVudGVyMg=="})
    assert spec.data == b"hunter2"
    assert encode(Secret(spec=spec))["Spec"] == {"Name": "pw", "Labels": {}}
    assert encode(ConfigSpec(name="c", data=b"hunter2"))["Data"] == "aHVudGVyMg=="


def test_enums_are_spelled_as_the_api_spells_them() -> None:
    assert decode(NodeSpec, {"Role": "Manager"}).role == NodeRole.NODE_ROLE_MANAGER
    assert encode(NodeSpec(role=NodeRole.NODE_ROLE_WORKER)) == {"Labels": {}, "Role": "worker"}
    assert encode(ManagerStatus(addr="a")) == {"Addr": "a", "Reachability": "unknown"}
    assert encode(UpdateConfig(order=UpdateOrder.UPDATE_ORDER_START_FIRST))["Order"] == "start-first"
    assert encode(Task(desired_state=TaskState.TASK_STATE_RUNNING))["DesiredState"] == "running"


def test_always_fields_are_written_with_their_default() -> None:
    assert encode(UpdateConfig()) == {"Parallelism": 0, "MaxFailureRatio": 0, "Order": ""}
    spec = encode(Cluster(spec=ClusterSpec(name="default")))["Spec"]
    assert isinstance(spec, dict)
    assert spec["EncryptionConfig"] == {"AutoLockManagers": False}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"TaskTemplate": {"Placement": {"MaxReplicas": "x"}}}, 'TaskTemplate.Placement.MaxReplicas: want an integer, got "x"'),
        ({"TaskTemplate": {"Placement": {"MaxReplicas": 1.0}}}, "TaskTemplate.Placement.MaxReplicas: want an integer, got 1.0"),
        ({"TaskTemplate": {"Placement": {"MaxReplicas": True}}}, "TaskTemplate.Placement.MaxReplicas: want an integer, got true"),
        ({"Mode": {"Replicated": {"Replicas": -1}}}, f"Mode.Replicated.Replicas: out of range: -1, want 0..{2**64 - 1}"),
        ({"taskTemplate": {"containerSpec": {"env": "A=1"}}}, 'TaskTemplate.ContainerSpec.Env: want a list, got "A=1"'),
        ({"TaskTemplate": {"ContainerSpec": {"Env": ["A", 1]}}}, "TaskTemplate.ContainerSpec.Env[1]: want a string, got 1"),
        ({"EndpointSpec": {"Ports": [{}, {"Protocol": "ip"}]}}, 'EndpointSpec.Ports[1].Protocol: invalid value "ip", want one of: tcp, udp, sctp'),
        ({"Labels": {"a": {}}}, "Labels['a']: want a string, got an object"),
        ({"Labels": ["a"]}, "Labels: want an object, got a list"),
        ({"UpdateConfig": {"MaxFailureRatio": "1"}}, 'UpdateConfig.MaxFailureRatio: want a number, got "1"'),
        ({"TaskTemplate": {"ContainerSpec": {"TTY": 1}}}, "TaskTemplate.ContainerSpec.TTY: want true or false, got 1"),
        ({"TaskTemplate": []}, "TaskTemplate: want an object, got a list"),
        ({"Mode": {"Replicated": {}, "Global": {}}}, "Mode.Global: only one of Replicated, Global, ReplicatedJob, GlobalJob may be given"),
        ([], "want an object, got a list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(value: object, message: str) -> None:
    with pytest.raises(JSONError) as caught:
        decode(ServiceSpec, value)
    assert str(caught.value) == message


@pytest.mark.parametrize("data", ["a", "a===", "äö", "a b="])
def test_bad_base64_is_refused(data: str) -> None:
    with pytest.raises(JSONError, match="Data: want base64"):
        decode(SecretSpec, {"Data": data})


@pytest.mark.parametrize("body", [b"", b" \n", b"{", b"nope", b'{"a": "\xff"}', b"[" * 100_000, b'{"Name": "\\ud800"}'])
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(JSONError, match="invalid JSON"):
        parse_json(body)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_json_error(body: bytes) -> None:
    try:
        decode_json(ServiceSpec, body)
    except JSONError:
        return


def test_an_error_never_repeats_much_of_the_value() -> None:
    with pytest.raises(JSONError) as caught:
        decode(ServiceSpec, {"TaskTemplate": {"ForceUpdate": "x" * 10_000}})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        (Timestamp(seconds=0), "1970-01-01T00:00:00Z"),
        (Timestamp(seconds=1_700_000_000, nanos=120_000_000), "2023-11-14T22:13:20.12Z"),
        (Timestamp(seconds=1_700_000_000, nanos=1), "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_timestamps_are_rfc3339_nano(stamp: Timestamp, text: str) -> None:
    assert format_timestamp(stamp) == text
    assert parse_timestamp(text) == stamp


def test_timestamps_of_other_zones_are_read() -> None:
    assert parse_timestamp("1970-01-01T02:00:00.5+02:00") == Timestamp(seconds=0, nanos=500_000_000)
    for text in ("yesterday", "2023-13-01T00:00:00Z", "2023-01-01", 5):
        with pytest.raises(JSONError):
            parse_timestamp(text)


def test_keys_of_maps_are_sorted_as_go_writes_them() -> None:
    keys = [f"key-{number}" for number in range(50)]
    spec = encode(ServiceSpec(labels=dict.fromkeys(reversed(keys), "v")))
    assert list(cast("dict[str, str]", spec["Labels"])) == sorted(keys)


# ---------------------------------------------------------------- round trip


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([ServiceSpec, ClusterSpec, NodeSpec, ConfigSpec, Service, Task, Node]))
def test_round_trip_loses_nothing(data: st.DataObject, kind: type[Message]) -> None:
    descriptor = cast("Descriptor", kind.DESCRIPTOR)  # the stub knows two classes of it, which are one
    message = data.draw(messages(descriptor))
    text = encode_json(message)
    assert decode_json(kind, text) == message
    assert encode_json(decode(kind, _upper(json.loads(text)))) == text


def _upper(value: object, *, keys: bool = True) -> object:
    """The same with message keys in another case; the keys of maps are the user's and stay."""
    if isinstance(value, list):
        return [_upper(item) for item in value]
    if isinstance(value, dict):
        free = {"Labels", "Options", "Sysctls", "DriverOpts"}
        return {
            (key.upper() if keys else key): _upper(item, keys=key not in free) if keys else item
            for key, item in value.items()
        }
    return value
