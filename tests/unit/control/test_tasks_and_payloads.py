"""Tasks, secrets, configs and the cluster itself through the control API."""

from __future__ import annotations

import grpc
import pytest

from manager.control.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidRequestError,
    NotFoundError,
    OutOfSequenceError,
    WireError,
    to_wire,
)
from manager.store import ObjectInUseError
from proto import control_pb2 as pb
from proto.objects_pb2 import Secret, Service, SpecVersion, Task, TaskState
from proto.specs_pb2 import ClusterSpec, ConfigSpec, SecretSpec, ServiceSpec
from tests.unit.control.builders import config_spec, secret_spec, service_spec
from tests.unit.control.managed import Managed

# ---------------------------------------------------------------- tasks


async def create(manager: Managed, spec: ServiceSpec) -> Service:
    return (await manager.control.create_service(pb.CreateServiceRequest(spec=spec))).service


async def tasks(manager: Managed, **filters: str) -> list[Task]:
    values = {key.replace("_", "-"): pb.FilterValues(values=value.split("|")) for key, value in filters.items()}
    if "-up-to-date" in values:
        values["_up-to-date"] = values.pop("-up-to-date")
    request = pb.ListTasksRequest(filters=pb.Filters(by_key=values))
    return [Task.FromString(task) for task in (await manager.control.list_tasks(request)).tasks]


def ids(found: list[Task]) -> set[str]:
    return {task.id for task in found}


async def test_tasks_come_with_each_spec_they_name_once(manager: Managed) -> None:
    service = await create(manager, service_spec())
    for index in range(3):
        await manager.add_task(f"t{index}", service.id, slot=index + 1)
    response = await manager.control.list_tasks(pb.ListTasksRequest())
    assert len(response.tasks) == 3
    assert [SpecVersion.FromString(spec).id for spec in response.specs] == [f"{service.id}.1"]


async def test_tasks_are_filtered(manager: Managed) -> None:
    labelled = service_spec("web")
    labelled.labels["tier"] = "front"
    web, db = await create(manager, labelled), await create(manager, service_spec("db"))
    await manager.add_node("n1", hostname="alpha")
    await manager.add_task("t1", web.id, slot=1, node_id="n1")
    await manager.add_task("t2", web.id, slot=2, desired=TaskState.TASK_STATE_SHUTDOWN)
    await manager.add_task("t3", db.id, slot=1)
    assert ids(await tasks(manager, service="web")) == ids(await tasks(manager, service=web.id[:8])) == {"t1", "t2"}
    assert ids(await tasks(manager, service="web|db")) == {"t1", "t2", "t3"}
    assert ids(await tasks(manager, node="alpha")) == {"t1"}
    assert ids(await tasks(manager, node="alpha", service="db")) == set()
    assert ids(await tasks(manager, desired_state="running")) == {"t1", "t3"}
    assert ids(await tasks(manager, desired_state="shutdown|accepted")) == {"t2"}
    assert ids(await tasks(manager, label="tier=front")) == {"t1", "t2"}
    assert ids(await tasks(manager, name="web.2")) == {"t2"}
    assert ids(await tasks(manager, id="t3|t1")) == {"t1", "t3"}
    assert ids(await tasks(manager, runtime="plugin")) == set()
    with pytest.raises(InvalidRequestError, match="Invalid desired-state filter: 'sleeping'"):
        await tasks(manager, desired_state="sleeping")
    with pytest.raises(NotFoundError, match="service nobody not found"):
        await tasks(manager, service="nobody")


async def test_only_tasks_of_the_present_spec_are_up_to_date(manager: Managed) -> None:
    service = await create(manager, service_spec())
    await manager.add_task("old", service.id)
    assert [task.id for task in await tasks(manager, _up_to_date="true")] == ["old"]
    spec = service_spec(replicas=5)
    request = pb.UpdateServiceRequest(ref="web", version=service.version.index, spec=spec)
    service = (await manager.control.update_service(request)).service
    assert [task.id for task in await tasks(manager, _up_to_date="true")] == ["old"]
    request = pb.UpdateServiceRequest(ref="web", version=service.version.index, spec=service_spec(image="busybox:2"))
    await manager.control.update_service(request)
    await manager.add_task("new", service.id, spec_version=3)
    assert [task.id for task in await tasks(manager, _up_to_date="true")] == ["new"]


async def test_a_task_is_found_by_its_name(manager: Managed) -> None:
    service = await create(manager, service_spec())
    await manager.add_task("task1", service.id)
    for ref in ("task1", "tas", "web.1.task1"):
        response = await manager.control.get_task(pb.GetTaskRequest(ref=ref))
        assert (response.task.id, response.spec.spec.name) == ("task1", "web")
    with pytest.raises(NotFoundError, match="task nope not found"):
        await manager.control.get_task(pb.GetTaskRequest(ref="nope"))


# ---------------------------------------------------------------- secrets and configs


async def test_a_secrets_data_never_comes_back(manager: Managed) -> None:
    created = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    found = (await manager.call("GetSecret", pb.GetSecretRequest(ref="password"))).secret
    (data,) = (await manager.call("ListSecrets", pb.ListSecretsRequest())).secrets
    listed = Secret.FromString(data)
    assert [secret.spec.data for secret in (created, found, listed)] == [b"", b"", b""]
    stored = manager.store.view.secrets.get(created.id)
    assert stored is not None
    assert stored.spec.data == b"hunter2"


async def test_names_of_secrets_and_configs_are_unique(manager: Managed) -> None:
    await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))
    with pytest.raises(AlreadyExistsError, match="secret password already exists"):
        await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))
    await manager.call("CreateConfig", pb.CreateConfigRequest(spec=config_spec()))
    with pytest.raises(AlreadyExistsError, match="config settings already exists"):
        await manager.call("CreateConfig", pb.CreateConfigRequest(spec=config_spec()))


async def test_only_labels_of_a_secret_change(manager: Managed) -> None:
    secret = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    for spec in (secret_spec(data=b"other"), secret_spec("other")):
        request = pb.UpdateSecretRequest(ref="password", version=secret.version.index, spec=spec)
        with pytest.raises(InvalidArgumentError, match="only updates to Labels are allowed"):
            await manager.call("UpdateSecret", request)
    version = (await manager.call("GetSecret", pb.GetSecretRequest(ref="password"))).secret.version.index
    spec = SecretSpec(name="password", labels={"a": "b"})
    updated = await manager.call("UpdateSecret", pb.UpdateSecretRequest(ref="password", version=version, spec=spec))
    assert dict(updated.secret.spec.labels) == {"a": "b"}
    stored = manager.store.view.secrets.get(secret.id)
    assert stored is not None
    assert stored.spec.data == b"hunter2"
    with pytest.raises(OutOfSequenceError):
        await manager.call("UpdateSecret", pb.UpdateSecretRequest(ref="password", version=version, spec=spec))


async def test_other_data_for_a_config_is_refused(manager: Managed) -> None:
    await manager.call("CreateConfig", pb.CreateConfigRequest(spec=config_spec()))
    version = (await manager.call("GetConfig", pb.GetConfigRequest(ref="settings"))).config.version.index
    request = pb.UpdateConfigRequest(ref="settings", version=version, spec=config_spec(data=b"other"))
    with pytest.raises(InvalidArgumentError, match="only updates to Labels are allowed"):
        await manager.call("UpdateConfig", request)
    request.spec.CopyFrom(ConfigSpec(name="settings", data=b"a=1", labels={"x": "y"}))
    assert (await manager.call("UpdateConfig", request)).config.spec.data == b"a=1"


async def test_what_services_name_is_not_removed(manager: Managed) -> None:
    secret = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    for name in ("web", "db"):
        spec = service_spec(name)
        reference = spec.task_template.container_spec.secrets.add(secret_id=secret.id, secret_name="password")
        reference.file.name = "password"
        await create(manager, spec)
    with pytest.raises(ObjectInUseError) as caught:
        await manager.call("RemoveSecret", pb.RemoveSecretRequest(ref="password"))
    assert to_wire(caught.value) == WireError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "rpc error: code = InvalidArgument desc = secret 'password' is in use by the following services: db, web",
    )
    for name in ("web", "db"):
        await manager.control.remove_service(pb.RemoveServiceRequest(ref=name))
    await manager.call("RemoveSecret", pb.RemoveSecretRequest(ref="password"))
    with pytest.raises(NotFoundError, match="secret password not found"):
        await manager.call("GetSecret", pb.GetSecretRequest(ref="password"))


async def test_a_refusal_to_remove_is_as_fresh_as_a_read(manager: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that was deposed without knowing it would else refuse what is no longer in use."""
    secret = (await manager.call("CreateSecret", pb.CreateSecretRequest(spec=secret_spec()))).secret
    spec = service_spec("web")
    reference = spec.task_template.container_spec.secrets.add(secret_id=secret.id, secret_name="password")
    reference.file.name = "password"
    await create(manager, spec)
    read_barrier = manager.consensus.read_barrier

    async def told_by_the_barrier(*, timeout_s: float = 20.0) -> int:
        monkeypatch.undo()
        await manager.control.remove_service(pb.RemoveServiceRequest(ref="web"))
        return await read_barrier(timeout_s=timeout_s)

    monkeypatch.setattr(manager.consensus, "read_barrier", told_by_the_barrier)
    await manager.call("RemoveSecret", pb.RemoveSecretRequest(ref="password"))
    assert manager.store.view.secrets.get(secret.id) is None


# ---------------------------------------------------------------- cluster


async def test_a_cluster_update_replaces_the_spec_and_rotates_tokens(manager: Managed) -> None:
    before = (await manager.control.get_cluster(pb.GetClusterRequest())).cluster
    spec = ClusterSpec()
    spec.orchestration.task_history_retention_limit = 3
    request = pb.UpdateClusterRequest(version=before.version.index, spec=spec, rotate_worker_token=True)
    after = (await manager.control.update_cluster(request)).cluster
    assert after.spec.orchestration.task_history_retention_limit == 3
    assert after.spec.dispatcher.heartbeat_period_ns == 5 * 10**9
    assert after.root_ca.join_tokens.worker != before.root_ca.join_tokens.worker
    assert after.root_ca.join_tokens.worker.split("-")[:3] == before.root_ca.join_tokens.worker.split("-")[:3]
    assert after.root_ca.join_tokens.manager == before.root_ca.join_tokens.manager
    assert after.root_ca.ca_key_pem == b""
    assert manager.store.view.cluster.root_ca.ca_key_pem == b"the key"
    with pytest.raises(OutOfSequenceError):
        await manager.control.update_cluster(request)


async def test_manager_info_needs_no_leader_and_shows_no_secret(manager: Managed) -> None:
    await manager.add_node("node-1")
    manager.consensus.lose_leadership()
    info = await manager.control.get_manager_info(pb.GetManagerInfoRequest())
    assert (info.nodes_total, info.has_leader) == (1, False)
    assert info.cluster.id == "cluster"
    assert b"SWMTKN" not in info.SerializeToString()
    assert [remote.addr for remote in info.remote_managers] == ["127.0.0.1:2377"]
