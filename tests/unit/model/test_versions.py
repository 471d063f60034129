"""What another spec makes of a service, by hand and by itself (features A5.08, A8.11)."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from manager.model.defaults import insert_defaults
from manager.model.endpoints import endpoint_of
from manager.model.versions import first_version, next_version, present_version, rolled_back, with_spec
from proto.objects_pb2 import UPDATE_STATE_PAUSED, UPDATE_STATE_ROLLBACK_STARTED, Rollout, Service
from proto.specs_pb2 import PUBLISH_MODE_HOST, PUBLISH_MODE_INGRESS, PortConfig, ServiceSpec

AT = Timestamp(seconds=7)


def spec(image: str, *ports: PortConfig) -> ServiceSpec:
    made = ServiceSpec(name="web")
    made.task_template.container_spec.image = image
    made.endpoint_spec.ports.extend(ports)
    return made


def port(number: int, *, host: bool) -> PortConfig:
    mode = PUBLISH_MODE_HOST if host else PUBLISH_MODE_INGRESS
    return PortConfig(published_port=number, target_port=80, publish_mode=mode)


def updated() -> Service:
    service = next_version(first_version("s", spec("one", port(1, host=True))), spec("two", port(2, host=True)))
    service.rollout.CopyFrom(Rollout(spec_version=2, slots_total=3, failed_task_ids=["t"]))
    service.update_status.state = UPDATE_STATE_PAUSED
    return service


def test_a_change_of_the_spec_keeps_the_one_before() -> None:
    service = updated()
    assert (service.spec_version, service.previous_spec_version) == (2, 1)
    assert service.previous_spec.task_template.container_spec.image == "one"
    assert [each.published_port for each in service.endpoint.ports] == [2]
    assert service.endpoint.spec == service.spec.endpoint_spec


def test_what_was_recorded_of_the_update_before_goes() -> None:
    third = next_version(updated(), spec("three"))
    assert not third.HasField("rollout")
    assert not third.HasField("update_status")


def test_a_rollback_by_hand_can_be_taken_back() -> None:
    before = updated()
    back = rolled_back(before, "by hand", started_at=AT, returns=True)
    assert (back.spec, back.previous_spec) == (before.previous_spec, before.spec)
    assert (back.spec_version, back.previous_spec_version) == (3, 2)
    assert (back.update_status.state, back.update_status.message) == (UPDATE_STATE_ROLLBACK_STARTED, "by hand")
    assert back.update_status.started_at == AT
    assert [each.published_port for each in back.endpoint.ports] == [1]
    assert not back.HasField("rollout")


def test_a_rollback_by_itself_leaves_nothing_to_go_back_to() -> None:
    before = updated()
    back = rolled_back(before, "failed", started_at=AT, returns=False)
    assert back.spec == before.previous_spec
    assert back.spec_version == 3
    assert not back.HasField("previous_spec")
    assert back.previous_spec_version == 0


def test_no_version_changes_the_service_it_is_made_from() -> None:
    before = updated()
    copy = Service()
    copy.CopyFrom(before)
    next_version(before, spec("three"))
    rolled_back(before, "x", started_at=AT, returns=True)
    assert before == copy


def test_what_is_kept_of_a_version() -> None:
    version = present_version(updated())
    assert (version.id, version.service_id, version.spec_version) == ("s.2", "s", 2)
    assert version.spec.task_template.container_spec.image == "two"


def test_an_endpoint_keeps_what_was_allocated() -> None:
    service = first_version("s", spec("one", port(1, host=True), port(0, host=False)))
    allocated = port(30000, host=False)
    service.endpoint.ports.append(allocated)
    service.spec.endpoint_spec.ports[0].published_port = 5
    wanted = endpoint_of(service)
    assert list(wanted.ports) == [port(5, host=True), allocated]
    assert wanted.spec == service.spec.endpoint_spec


def test_an_update_that_changes_nothing_keeps_the_way_back() -> None:
    before = updated()
    assert with_spec(before, before.spec) == before


def test_defaults_that_are_written_out_are_kept_in_a_version_of_their_own() -> None:
    """What they mean is the same, so the previous spec and the update's status stay."""
    before = updated()
    after = with_spec(before, insert_defaults(before.spec))
    assert after.spec == insert_defaults(before.spec)
    assert after.spec_version == 3, "a number names one content"
    assert (after.previous_spec, after.update_status) == (before.previous_spec, before.update_status)
    assert not after.HasField("rollout")


def test_another_spec_is_a_version_with_a_way_back() -> None:
    before = updated()
    assert with_spec(before, spec("three")) == next_version(before, spec("three"))
