"""From a task to a container (features A5.13, A5.14, A10.01 to A10.16)."""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from proto.objects_pb2 import Config, Network, NetworkAttachment, Secret
from proto.specs_pb2 import (
    ConfigReference,
    GenericResource,
    NamedGenericResource,
    NetworkAttachmentConfig,
    PortConfig,
    PublishMode,
    SecretReference,
    Ulimit,
)
from proto.specs_pb2 import Mount as MountSpec
from runtime.types import EndpointIPAMConfig, LogConfig, PortBinding
from tests.unit.dispatcher.support import make_spec_version, make_task
from worker.agent.container_spec import NodeFacts, plan_container, registry_auth
from worker.agent.contents import Contents
from worker.agent.executor import Assignment, ExecutorError
from worker.agent.payloads import PayloadFolder, plan_files

NODE = NodeFacts("n1", "host")


def make_assignment() -> Assignment:
    return Assignment(make_task("t1", "n1", service_id="s1"), make_spec_version("s1", image="busybox:1"))


def test_names_and_labels() -> None:
    assignment = make_assignment()
    spec = assignment.spec_version.spec
    spec.labels["of"] = "service"
    spec.task_template.container_spec.labels["of"] = "container"
    plan = plan_container(assignment, NODE)
    assert plan.name == "name-s1.1.t1"
    assert plan.config.Labels == {
        "of": "container",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "name-s1.1.t1",
        "com.docker.swarm.node.id": "n1",
        "com.docker.swarm.service.id": "s1",
        "com.docker.swarm.service.name": "name-s1",
    }
    assignment.task.slot = 0
    assert plan_container(assignment, NODE).name == "name-s1.n1.t1"


def test_everything_of_a_spec_arrives() -> None:
    assignment = make_assignment()
    assignment.task.assigned_generic_resources.append(
        GenericResource(named=NamedGenericResource(kind="gpu", value="G1"))
    )
    template = assignment.spec_version.spec.task_template
    spec = template.container_spec
    spec.command.append("/bin/sh")
    spec.args.extend(["-c", "true"])
    spec.env.extend(["S={{.Task.Slot}}", "PLAIN=1"])
    spec.hostname, spec.dir, spec.user = "{{.Node.Hostname}}-{{.Task.Slot}}", "/w", "1:2"
    spec.groups.append("33")
    spec.hosts.append("10.0.0.1 db db2")
    spec.stop_signal, spec.stop_grace_period_ns = "SIGUSR1", 1_500_000_000
    spec.init, spec.read_only, spec.tty = True, True, True
    spec.sysctls["net.core.somaxconn"] = "1024"
    spec.capability_add.append("CAP_NET_ADMIN")
    spec.ulimits.append(Ulimit(name="nofile", soft=1, hard=2))
    spec.oom_score_adj = 100
    spec.privileges.no_new_privileges = True
    spec.privileges.seccomp.mode = "unconfined"
    spec.dns_config.nameservers.append("9.9.9.9")
    spec.healthcheck.test.extend(["CMD", "true"])
    spec.healthcheck.interval_ns = 5
    spec.mounts.append(MountSpec(type="volume", source="data-{{.Task.Slot}}", target="/data"))
    template.resources.limits.memory_bytes = 64 << 20
    template.resources.limits.nano_cpus = 500_000_000
    template.resources.limits.pids = 10
    template.resources.reservations.memory_bytes = 32 << 20
    template.resources.swap_bytes = 1 << 20
    template.log_driver.name = "json-file"
    template.log_driver.options["max-size"] = "1m"
    plan = plan_container(assignment, NODE)
    config, host = plan.config, plan.host
    assert (config.Entrypoint, config.Cmd) == (["/bin/sh"], ["-c", "true"])
    assert config.Env == ["S=1", "PLAIN=1", "DOCKER_RESOURCE_GPU=G1"]
    assert (config.Hostname, config.WorkingDir, config.User, config.Tty) == ("host-1", "/w", "1:2", True)
    assert (config.StopSignal, config.StopTimeout) == ("SIGUSR1", 2)
    assert config.Healthcheck is not None
    assert (config.Healthcheck.Test, config.Healthcheck.Interval) == (["CMD", "true"], 5)
    assert host.ExtraHosts == ["db db2:10.0.0.1"]
    assert (host.Init, host.ReadonlyRootfs, host.OomScoreAdj) == (True, True, 100)
    assert host.Sysctls == {"net.core.somaxconn": "1024"}
    assert (host.CapAdd, host.GroupAdd, host.Dns) == (["CAP_NET_ADMIN"], ["33"], ["9.9.9.9"])
    assert host.SecurityOpt == ["no-new-privileges=true", "seccomp=unconfined"]
    assert host.Ulimits is not None
    assert (host.Ulimits[0].Name, host.Ulimits[0].Soft, host.Ulimits[0].Hard) == ("nofile", 1, 2)
    assert host.Mounts is not None
    assert (host.Mounts[0].Type, host.Mounts[0].Source, host.Mounts[0].Target) == ("volume", "data-1", "/data")
    assert (host.Memory, host.MemoryReservation, host.MemorySwap) == (64 << 20, 32 << 20, 65 << 20)
    assert (host.NanoCpus, host.PidsLimit) == (500_000_000, 10)
    assert (host.LogConfig.Type, host.LogConfig.Config) == ("json-file", {"max-size": "1m"})


def test_the_tasks_log_driver_is_used_where_the_spec_names_none() -> None:
    """Features A1.22, A10.10: the service's, else the cluster's default as the task has it, else the engine's."""
    assignment = make_assignment()
    assert plan_container(assignment, NODE).host.LogConfig == LogConfig()
    assignment.task.log_driver.name = "json-file"
    assignment.task.log_driver.options["max-size"] = "2m"
    assert plan_container(assignment, NODE).host.LogConfig == LogConfig(Type="json-file", Config={"max-size": "2m"})
    assignment.spec_version.spec.task_template.log_driver.name = "none"
    assert plan_container(assignment, NODE).host.LogConfig == LogConfig(Type="none")


def test_ports_in_host_mode_are_the_containers() -> None:
    assignment = make_assignment()
    ports = assignment.spec_version.spec.endpoint_spec.ports
    ports.append(PortConfig(target_port=80, published_port=8080, publish_mode=PublishMode.PUBLISH_MODE_HOST))
    ports.append(PortConfig(target_port=81, publish_mode=PublishMode.PUBLISH_MODE_HOST))
    ports.append(PortConfig(target_port=82, published_port=82, publish_mode=PublishMode.PUBLISH_MODE_INGRESS))
    host = plan_container(assignment, NODE).host
    assert host.PortBindings == {"80/tcp": [PortBinding(HostPort="8080")], "81/tcp": [PortBinding()]}


def test_networks() -> None:
    assignment = make_assignment()
    assert plan_container(assignment, NODE).host.NetworkMode == "bridge"
    networks = assignment.spec_version.spec.task_template.networks
    networks.append(NetworkAttachmentConfig(target="host"))
    assert plan_container(assignment, NODE).host.NetworkMode == "host"
    networks[0].target = "overlay1"
    with pytest.raises(ExecutorError, match="network overlay1 not found"):
        plan_container(assignment, NODE)


def test_networks_of_the_cluster_come_with_the_addresses_that_it_gave() -> None:
    assignment = make_assignment()
    front = Network(id="n1")
    front.spec.name = "front"
    networks = assignment.spec_version.spec.task_template.networks
    networks.extend([NetworkAttachmentConfig(target="n1", aliases=["shop"]), NetworkAttachmentConfig(target="bridge")])
    assignment.task.networks_attachments.append(
        NetworkAttachment(network_id="n1", addresses=["10.0.1.5/24", "fd00::5/64"])
    )
    assignment = replace(assignment, needed=Contents(front))
    plan = plan_container(assignment, NODE)
    assert (plan.host.NetworkMode, plan.networks) == ("front", (front,))
    assert plan.networking is not None
    endpoints = plan.networking.EndpointsConfig or {}
    assert set(endpoints) == {"front", "bridge"}
    front_endpoint = endpoints["front"]
    assert front_endpoint is not None
    assert front_endpoint.IPAMConfig == EndpointIPAMConfig(IPv4Address="10.0.1.5", IPv6Address="fd00::5")
    assert front_endpoint.Aliases is None  # they are names of the service's virtual IP
    networks[1].target = "host"
    with pytest.raises(ExecutorError, match="a task cannot be on these networks at once: n1, host"):
        plan_container(assignment, NODE)


def test_a_bad_template_says_where() -> None:
    assignment = make_assignment()
    assignment.spec_version.spec.task_template.container_spec.env.append("A={{.Planet}}")
    with pytest.raises(ExecutorError, match="expanding env failed: template: can't evaluate field Planet"):
        plan_container(assignment, NODE)


def test_registry_credentials() -> None:
    text = base64.urlsafe_b64encode(b'{"username":"u","password":"p","serveraddress":"r"}').decode().rstrip("=")
    auth = registry_auth(text)
    assert auth is not None
    assert (auth.username, auth.password, auth.server_address) == ("u", "p", "r")
    assert registry_auth("") is None
    for bad in ("!!!", base64.urlsafe_b64encode(b"[]").decode()):
        with pytest.raises(ExecutorError, match="cannot be read"):
            registry_auth(bad)


def with_payloads(secret_data: bytes = b"pw", config_data: bytes = b"x", *, templated: bool = False) -> Assignment:
    secret, config = Secret(id="s"), Config(id="c")
    secret.spec.data, config.spec.data = secret_data, config_data
    if templated:
        secret.spec.templating.name = config.spec.templating.name = "golang"
    version = make_spec_version("s1")
    spec = version.spec.task_template.container_spec
    secret_ref = SecretReference(secret_id="s", secret_name="password")
    secret_ref.file.name, secret_ref.file.mode, secret_ref.file.uid = "pw", 0o400, "1000"
    config_ref = ConfigReference(config_id="c", config_name="settings")
    config_ref.file.name, config_ref.file.mode = "/etc/settings", 0o444
    spec.secrets.append(secret_ref)
    spec.configs.append(config_ref)
    spec.configs.append(ConfigReference(config_id="r", config_name="for-the-runtime"))
    spec.env.append("COLOUR=blue")
    return Assignment(make_task("t1", "n1"), version, Contents(secret, config))


def test_secrets_and_configs_become_files() -> None:
    secret, config = plan_files(with_payloads(), NODE)
    assert (secret.target, secret.data, secret.uid, secret.mode) == ("/run/secrets/pw", b"pw", 1000, 0o400)
    assert (config.target, config.data, config.gid, config.mode) == ("/etc/settings", b"x", 0, 0o444)
    assert "pw" not in repr(secret).replace("/run/secrets/pw", "")


def test_payloads_may_be_templates_that_name_one_another() -> None:
    assignment = with_payloads(b"{{.Task.Slot}}", b'{{secret "pw"}}-{{env "COLOUR"}}', templated=True)
    assert [file.data for file in plan_files(assignment, NODE)] == [b"1", b"1-blue"]
    circle = with_payloads(b'{{config "/etc/settings"}}', b'{{secret "pw"}}', templated=True)
    with pytest.raises(ExecutorError, match="needs itself"):
        plan_files(circle, NODE)


def test_a_missing_secret_is_named() -> None:
    assignment = with_payloads()
    bare = Assignment(assignment.task, assignment.spec_version, Contents(*assignment.needed.of(Config).values()))
    with pytest.raises(ExecutorError, match="secret password not found"):
        plan_files(bare, NODE)
    assignment.spec_version.spec.task_template.container_spec.secrets[0].file.uid = "root"
    with pytest.raises(ExecutorError, match="secret password: UID root is no user or group number"):
        plan_files(assignment, NODE)


@pytest.mark.parametrize("name", ["", ".", "..", "../kept", "{outside}", "t1/.."])
def test_a_task_id_is_no_way_out_of_the_folder_of_payloads(name: str, tmp_path: Path) -> None:
    """A task's ID is told by the managers; for what is to be removed it is a label, which an image may have set."""
    kept = tmp_path / "kept"
    (tmp_path / "payloads" / "t1").mkdir(parents=True)
    kept.mkdir()
    folder = PayloadFolder(tmp_path / "payloads")
    folder.remove(name.format(outside=kept))
    with pytest.raises(ExecutorError, match="is no ID of a task"):
        folder.write(name.format(outside=kept), [])
    assert kept.exists()
    assert (tmp_path / "payloads" / "t1").exists()


@pytest.mark.root
def test_files_lie_in_memory_with_their_owner_and_mode() -> None:
    root = Path(f"/dev/shm/payloads-{os.getpid()}")
    folder = PayloadFolder(root)
    try:
        folder.open()
        mounts = folder.write("t1", plan_files(with_payloads(), NODE))
        assert [(mount.Target, mount.ReadOnly) for mount in mounts] == [
            ("/run/secrets/pw", True),
            ("/etc/settings", True),
        ]
        found = os.stat(mounts[0].Source)
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o400, 1000)
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o700
        folder.remove("t1")
        folder.remove("t1")
        assert list(root.iterdir()) == []
    finally:
        root.rmdir()


def test_templates_of_one_task_have_one_bound() -> None:
    assignment = make_assignment()
    spec = assignment.spec_version.spec.task_template.container_spec
    doubling = "".join("{{with print . .}}" for _ in range(14))
    spec.env.extend(["A={{with `0123456789`}}" + doubling + "{{.}}" + "{{end}}" * 15] * 4)
    assert sum(map(len, plan_container(assignment, NODE).config.Env or [])) > 4 * 10 * 2**14
    spec.env.extend(spec.env[0] for _ in range(100))
    with pytest.raises(ExecutorError, match="expanding env failed: template: output too large"):
        plan_container(assignment, NODE)


def test_payloads_that_name_one_another_twice_have_that_bound_too() -> None:
    assignment = make_assignment()
    configs = []
    for number in range(40):
        config = Config(id=f"c{number}")
        following = f'{{{{config "{number + 1}"}}}}' * 2
        config.spec.data = following.encode() if number < 39 else b"end"
        config.spec.templating.name = "golang"
        configs.append(config)
        reference = ConfigReference(config_id=config.id, config_name=config.id)
        reference.file.name = str(number)
        assignment.spec_version.spec.task_template.container_spec.configs.append(reference)
    with pytest.raises(ExecutorError, match="output too large"):
        plan_files(Assignment(assignment.task, assignment.spec_version, Contents(*configs)), NODE)


def test_an_owner_of_any_length_is_refused_as_no_number() -> None:
    assignment = with_payloads()
    assignment.spec_version.spec.task_template.container_spec.secrets[0].file.uid = "1" * 5000
    with pytest.raises(ExecutorError, match="is no user or group number"):
        plan_files(assignment, NODE)
