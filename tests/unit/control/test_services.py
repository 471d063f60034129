"""Services through the control API: names, versions, updates, roll-back, removal, counts."""

from __future__ import annotations

import pytest

from manager.control.errors import (
    AlreadyExistsError,
    ControlError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidRequestError,
    NotFoundError,
    OutOfSequenceError,
    UnimplementedError,
    to_wire,
)
from proto import control_pb2 as pb
from proto.objects_pb2 import NodeState, Service, TaskState, UpdateState
from proto.specs_pb2 import PublishMode, RestartCondition, ServiceSpec
from tests.unit.control.builders import config_spec, global_spec, secret_spec, service_spec
from tests.unit.control.managed import Managed


async def create(manager: Managed, spec: ServiceSpec | None = None, **fields: str) -> Service:
    request = pb.CreateServiceRequest(spec=spec or service_spec(), registry_auth=fields.get("registry_auth", ""))
    return (await manager.control.create_service(request)).service


async def update(manager: Managed, service: Service, spec: ServiceSpec, **fields: object) -> Service:
    request = pb.UpdateServiceRequest(ref=service.id, version=service.version.index, spec=spec)
    for name, value in fields.items():
        setattr(request, name, value)
    return (await manager.control.update_service(request)).service


async def test_a_service_begins_at_version_one(manager: Managed) -> None:
    service = await create(manager)
    assert len(service.id) == 25
    assert service.version.index > 0
    assert service.spec_version == 1
    assert service.created_at.seconds == manager.now_ns[0] // 10**9


async def test_a_name_in_use_is_refused_and_free_again_after_removal(manager: Managed) -> None:
    first = await create(manager)
    with pytest.raises(AlreadyExistsError) as caught:
        await create(manager)
    wire = to_wire(caught.value)
    assert wire is not None
    assert wire.text == (
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"
    )
    await manager.control.remove_service(pb.RemoveServiceRequest(ref="web"))
    second = await create(manager)
    assert second.id != first.id


async def test_a_service_without_a_name_gets_one(manager: Managed) -> None:
    spec = service_spec()
    spec.ClearField("name")
    assert (await create(manager, spec)).spec.name


async def test_references_are_id_then_name_then_unique_prefix(manager: Managed) -> None:
    service = await create(manager)
    for ref in (service.id, "web", service.id[:6]):
        found = await manager.control.get_service(pb.GetServiceRequest(ref=ref))
        assert found.service.id == service.id
    with pytest.raises(NotFoundError, match="service we not found"):
        await manager.control.get_service(pb.GetServiceRequest(ref="we"))
    await create(manager, service_spec("other"))
    with pytest.raises(ControlError):
        await manager.control.get_service(pb.GetServiceRequest(ref=""))


async def test_an_update_keeps_the_previous_spec_and_counts_versions(manager: Managed) -> None:
    service = await create(manager)
    changed = await update(manager, service, service_spec(image="busybox:2"))
    assert (changed.spec_version, changed.previous_spec_version) == (2, 1)
    assert changed.previous_spec.task_template.container_spec.image == "busybox:1"
    assert not changed.HasField("update_status")


async def test_a_stale_version_is_out_of_sequence(manager: Managed) -> None:
    service = await create(manager)
    await update(manager, service, service_spec(replicas=3))
    with pytest.raises(OutOfSequenceError) as caught:
        await update(manager, service, service_spec(replicas=4))
    wire = to_wire(caught.value)
    assert wire is not None
    assert wire.text == "rpc error: code = Unknown desc = update out of sequence"


async def test_rename_and_mode_change_are_not_done(manager: Managed) -> None:
    service = await create(manager)
    with pytest.raises(UnimplementedError, match="renaming services is not supported"):
        await update(manager, service, service_spec("other"))
    with pytest.raises(UnimplementedError, match="service mode change is not allowed"):
        await update(manager, service, global_spec())


async def test_rollback_swaps_specs_and_version_numbers_only_rise(manager: Managed) -> None:
    service = await create(manager)
    with pytest.raises(FailedPreconditionError, match="does not have a previous spec"):
        await update(manager, service, service_spec(), rollback=True)
    second = await update(manager, service, service_spec(image="busybox:2"))
    back = await update(manager, second, ServiceSpec(), rollback=True)
    assert back.spec.task_template.container_spec.image == "busybox:1"
    assert back.previous_spec.task_template.container_spec.image == "busybox:2"
    assert (back.spec_version, back.previous_spec_version) == (3, 2)
    assert back.update_status.state == UpdateState.UPDATE_STATE_ROLLBACK_STARTED
    assert back.update_status.message == "manually requested rollback"
    forward = await update(manager, back, ServiceSpec(), rollback=True)
    assert forward.spec.task_template.container_spec.image == "busybox:2"
    assert (forward.spec_version, forward.previous_spec_version) == (4, 3)
    third = await update(manager, forward, service_spec(image="busybox:3"))
    assert third.spec_version == 5
    assert not third.HasField("update_status")


async def test_rollback_to_a_secret_that_is_gone_is_refused(manager: Managed) -> None:
    secret = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    spec = service_spec()
    spec.task_template.container_spec.secrets.add(secret_id=secret.id, secret_name="password").file.name = "password"
    service = await create(manager, spec)
    second = await update(manager, service, service_spec(image="busybox:2"))
    await manager.call("RemoveSecret", pb.RemoveSecretRequest(ref=secret.id))
    with pytest.raises(InvalidArgumentError, match="secret not found: password"):
        await update(manager, second, ServiceSpec(), rollback=True)


async def test_registry_credentials_are_kept_over_an_update(manager: Managed) -> None:
    service = await create(manager, registry_auth="first")
    second = await update(manager, service, service_spec(image="busybox:2"))
    assert second.spec.task_template.registry_auth == "first"
    third = await update(manager, second, service_spec(image="busybox:3"), registry_auth="second")
    assert third.spec.task_template.registry_auth == "second"
    previous = pb.UpdateServiceRequest.REGISTRY_AUTH_FROM_PREVIOUS_SPEC
    fourth = await update(manager, third, service_spec(image="busybox:4"), registry_auth_from=previous)
    assert fourth.spec.task_template.registry_auth == "first"


async def test_a_removed_service_is_gone_for_readers_and_its_tasks_are_to_go(manager: Managed) -> None:
    service = await create(manager)
    await manager.add_task("t1", service.id)
    await manager.control.remove_service(pb.RemoveServiceRequest(ref="web"))
    task = manager.store.view.tasks.get("t1")
    assert task is not None
    assert task.desired_state == TaskState.TASK_STATE_REMOVE
    assert not (await manager.control.list_services(pb.ListServicesRequest())).services
    with pytest.raises(NotFoundError, match="service web not found"):
        await manager.control.remove_service(pb.RemoveServiceRequest(ref="web"))
    with pytest.raises(NotFoundError):
        await manager.control.get_service(pb.GetServiceRequest(ref=service.id))


async def test_a_service_of_thousands_of_tasks_is_removed_in_one_entry(manager: Managed) -> None:
    service = await create(manager)
    for index in range(400):
        await manager.add_task(f"t{index}", service.id, slot=index + 1)
    before = manager.consensus.applied_index
    await manager.control.remove_service(pb.RemoveServiceRequest(ref="web"))
    assert manager.consensus.applied_index == before + 1


async def test_secrets_and_configs_must_exist(manager: Managed) -> None:
    spec = service_spec()
    reference = spec.task_template.container_spec.secrets.add(secret_id="nope", secret_name="password")
    reference.file.name = "password"
    with pytest.raises(InvalidArgumentError, match="secret not found: password"):
        await create(manager, spec)
    secret = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    reference.secret_id = secret.id
    config = (await manager.call("CreateConfig", pb.CreateConfigRequest(spec=config_spec()))).config
    wanted = spec.task_template.container_spec.configs.add(config_id=config.id, config_name="another")
    wanted.file.name = "/settings"
    with pytest.raises(InvalidArgumentError, match="config not found: another"):
        await create(manager, spec)
    wanted.config_name = "settings"
    await create(manager, spec)


async def test_an_ingress_port_in_use_is_refused_and_a_host_port_is_not(manager: Managed) -> None:
    holder = Service(id="holder", spec=service_spec("holder"))
    holder.spec.endpoint_spec.ports.add(
        published_port=80, target_port=80, protocol=1, publish_mode=PublishMode.PUBLISH_MODE_INGRESS
    )
    holder.spec.endpoint_spec.ports.add(
        published_port=81, target_port=80, protocol=1, publish_mode=PublishMode.PUBLISH_MODE_HOST
    )
    await manager.commit(lambda working: working.create(holder))
    spec = service_spec()
    port = spec.endpoint_spec.ports.add(published_port=80, target_port=80, publish_mode=PublishMode.PUBLISH_MODE_HOST)
    with pytest.raises(InvalidArgumentError) as caught:
        await create(manager, spec)
    assert str(caught.value) == "port '80' is already in use by service 'holder' (holder) as an ingress port"
    port.published_port = 81
    response = await manager.control.create_service(pb.CreateServiceRequest(spec=spec))
    assert response.service.endpoint.ports[0].published_port == 81
    assert len(response.warnings) == 1
    assert "0.0.0.0" in response.warnings[0]


async def test_status_counts_running_and_desired_tasks(manager: Managed) -> None:
    service = await create(manager, service_spec(replicas=3))
    everywhere = await create(manager, global_spec("everywhere"))
    await manager.add_task("t1", service.id, slot=1)
    await manager.add_task("t2", service.id, slot=2, state=TaskState.TASK_STATE_PREPARING)
    await manager.add_task("t3", everywhere.id, slot=0, node_id="n1")
    await manager.add_task(
        "t4",
        everywhere.id,
        slot=0,
        node_id="n2",
        state=TaskState.TASK_STATE_SHUTDOWN,
        desired=TaskState.TASK_STATE_SHUTDOWN,
    )
    response = await manager.control.list_services(pb.ListServicesRequest(status=True))
    assert response.statuses[service.id] == pb.ServiceStatus(running_tasks=1, desired_tasks=3)
    assert response.statuses[everywhere.id] == pb.ServiceStatus(running_tasks=1, desired_tasks=1)


async def test_tasks_of_a_node_that_is_down_are_not_counted_as_running(manager: Managed) -> None:
    """They were replaced elsewhere: 4/3 would be shown until the node is back."""
    service = await create(manager, service_spec(replicas=1))
    await manager.add_node("n1", state=NodeState.NODE_STATE_DOWN)
    await manager.add_node("n2", state=NodeState.NODE_STATE_UNKNOWN)
    await manager.add_task("t1", service.id, node_id="n1", desired=TaskState.TASK_STATE_SHUTDOWN)
    await manager.add_task("t2", service.id, node_id="n2")
    response = await manager.control.list_services(pb.ListServicesRequest(status=True))
    assert response.statuses[service.id] == pb.ServiceStatus(running_tasks=1, desired_tasks=1)


async def test_defaults_are_shown_on_request_and_not_stored(manager: Managed) -> None:
    await create(manager)
    shown = await manager.control.get_service(pb.GetServiceRequest(ref="web", insert_defaults=True))
    assert shown.service.spec.update_config.parallelism == 1
    stored = await manager.control.get_service(pb.GetServiceRequest(ref="web"))
    assert not stored.service.spec.HasField("update_config")


async def test_services_are_filtered(manager: Managed) -> None:
    labelled = service_spec("web")
    labelled.labels["tier"] = "front"
    await create(manager, labelled)
    await create(manager, global_spec("webhook"))
    await create(manager, service_spec("db"))

    async def names(**filters: str) -> set[str]:
        values = {key: pb.FilterValues(values=value.split("|")) for key, value in filters.items()}
        request = pb.ListServicesRequest(filters=pb.Filters(by_key=values))
        return {
            Service.FromString(found).spec.name for found in (await manager.control.list_services(request)).services
        }

    assert await names(name="web") == {"web", "webhook"}
    assert await names(name="web", mode="global") == {"webhook"}
    assert await names(label="tier") == await names(label="tier=front") == {"web"}
    assert await names(label="tier|tier=back") == set()
    assert await names(mode="replicated|global") == {"web", "webhook", "db"}
    with pytest.raises(InvalidRequestError, match="invalid filter 'colour'"):
        await names(colour="red")


async def test_restarts_beyond_those_that_are_counted_are_told(manager: Managed) -> None:
    spec = service_spec()
    policy = spec.task_template.restart_policy
    policy.max_attempts, policy.window_ns, policy.delay_ns = 5000, 86_400 * 10**9, 10**9
    made = await manager.control.create_service(pb.CreateServiceRequest(spec=spec))
    assert ["1000 are counted" in text for text in made.warnings] == [True]


async def test_a_number_of_replicas_nobody_means_is_refused(manager: Managed) -> None:
    spec = service_spec()
    spec.mode.replicated.replicas = 1 << 40
    with pytest.raises(InvalidArgumentError, match="at most 1000000 replicas, not 1099511627776"):
        await manager.control.create_service(pb.CreateServiceRequest(spec=spec))


@pytest.mark.parametrize(
    ("attempts", "delay_s", "window_s", "told"),
    [(1, 5, 5, True), (3, 5, 10, True), (3, None, 15, True), (3, 5, 16, False), (3, 0, 1, False), (0, 5, 1, False)],
)
async def test_a_restart_window_that_never_fills_is_told(
    manager: Managed, attempts: int, delay_s: int | None, window_s: int, told: bool
) -> None:
    """The attempts would have no end: three restarts, each after 5 s, are never within 10 s."""
    spec = service_spec()
    policy = spec.task_template.restart_policy
    policy.max_attempts, policy.window_ns = attempts, window_s * 10**9
    if delay_s is not None:
        policy.delay_ns = delay_s * 10**9
    made = await manager.control.create_service(pb.CreateServiceRequest(spec=spec))
    assert ["will never be reached" in text for text in made.warnings] == [True] * told
    request = pb.UpdateServiceRequest(ref="web", version=made.service.version.index, spec=spec)
    request.spec.mode.replicated.replicas = 5
    assert not (await manager.control.update_service(request)).warnings, "it was told before"


async def test_no_restarts_need_no_window(manager: Managed) -> None:
    spec = service_spec()
    policy = spec.task_template.restart_policy
    policy.condition = RestartCondition.RESTART_CONDITION_NONE
    policy.max_attempts, policy.window_ns = 3, 10**9
    assert not (await manager.control.create_service(pb.CreateServiceRequest(spec=spec))).warnings


async def test_an_update_that_changes_nothing_still_checks_the_version(manager: Managed) -> None:
    service = await create(manager)
    again = await update(manager, service, service_spec())
    assert (again.spec_version, again.HasField("previous_spec")) == (1, False)
    with pytest.raises(OutOfSequenceError):
        await update(manager, service, service_spec())
