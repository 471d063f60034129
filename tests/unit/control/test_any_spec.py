"""Whatever a client sends: it is stored or refused in order, never a crash, and reading it back changes nothing."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.control.defaults import complete_cluster_spec
from manager.control.errors import ControlError
from manager.control.services import create_service, roll_back_service, update_service
from manager.control.validation import validate_cluster_spec, validate_service_spec
from manager.model.defaults import (
    insert_defaults,
    normalize_service_spec,
    replicas,
    restart_rules,
    update_rules,
)
from manager.model.versions import present_version
from manager.store import StoreError
from manager.store.machine import Machine
from proto.objects_pb2 import Cluster, Service
from proto.specs_pb2 import ClusterSpec, ServiceSpec
from tests.unit.api_swarm.strategies import messages

QUIET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@QUIET
@given(messages(ServiceSpec.DESCRIPTOR))
def test_any_service_spec_is_accepted_or_refused(spec: ServiceSpec) -> None:
    full = normalize_service_spec(spec)
    assert normalize_service_spec(full) == full
    try:
        validate_service_spec(full)
        create_service(Machine().begin(), full, service_id="s")
    except (ControlError, StoreError):
        return


@QUIET
@given(messages(ServiceSpec.DESCRIPTOR))
def test_defaults_written_out_say_what_is_in_force(spec: ServiceSpec) -> None:
    """Whether a spec is taken as it came, normalised, or with every default written out: the same rules hold."""
    normal, full = normalize_service_spec(spec), insert_defaults(spec)
    assert insert_defaults(normal) == insert_defaults(full) == normalize_service_spec(full) == full
    for other in (normal, full):
        assert replicas(other) == replicas(spec)
        assert restart_rules(other.task_template) == restart_rules(spec.task_template)
        for rollback in (False, True):
            assert update_rules(other, rollback=rollback) == update_rules(spec, rollback=rollback)


@QUIET
@given(messages(ClusterSpec.DESCRIPTOR))
def test_any_cluster_spec_is_accepted_or_refused(spec: ClusterSpec) -> None:
    full = complete_cluster_spec(spec)
    assert complete_cluster_spec(full) == full
    try:
        validate_cluster_spec(full, Cluster())
    except ControlError:
        return


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=12))
def test_versions_rise_and_every_one_has_its_content_whatever_the_order(rollbacks: list[bool]) -> None:
    working = Machine().begin()
    spec = ServiceSpec(name="web")
    spec.mode.replicated.replicas = 0
    service = create_service(working, spec, service_id="s")
    ids = {present_version(service).id}
    for step, rollback in enumerate(rollbacks):
        before = Service()
        before.CopyFrom(service)
        if rollback and service.HasField("previous_spec"):
            service = roll_back_service(working, service, version=0, now=Timestamp(seconds=2))
            assert service.spec == before.previous_spec
        else:
            spec = ServiceSpec()
            spec.CopyFrom(service.spec)
            spec.mode.replicated.replicas = step + 1
            service = update_service(working, service, spec, version=0)
        assert service.previous_spec == before.spec
        assert service.previous_spec_version == before.spec_version
        assert service.spec_version == before.spec_version + 1
        kept = present_version(service)
        assert (kept.service_id, kept.spec_version, kept.spec) == ("s", service.spec_version, service.spec)
        assert kept.id not in ids
        ids.add(kept.id)
