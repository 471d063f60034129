"""From a task to the container that the engine makes of it. Pure (features A5.13, A5.14, A10.01 to A10.13).

Source: swarmkit ``agent/exec/dockerapi`` and moby ``daemon/cluster/executor/container/container.go``.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping

import msgspec

from base.gotemplate.faults import TemplateError
from base.gotemplate.values import Budget, Function, Labels
from base.json_text import read_json
from proto.objects_pb2 import Network, Task
from proto.specs_pb2 import (
    ContainerSpec,
    DNSConfig,
    PortConfig,
    PortProtocol,
    Privileges,
    PublishMode,
    ResourceRequirements,
)
from proto.specs_pb2 import Mount as MountSpec
from runtime.images import RegistryAuth
from runtime.types import (
    TASK_ID_LABEL,
    BindOptions,
    ContainerConfig,
    EndpointIPAMConfig,
    EndpointSettings,
    HealthConfig,
    HostConfig,
    LogConfig,
    Mount,
    NetworkingConfig,
    PortBinding,
    TmpfsOptions,
    Ulimit,
    VolumeDriverConfig,
    VolumeOptions,
)
from worker.agent.executor import Assignment, ExecutorError
from worker.agent.templates import CHARACTERS_MAX, Value, expand
from worker.network.driver import WAY_OUT
from worker.network.told import protocol_word

LABEL = "com.docker.swarm"

NETWORK_MODES = ("bridge", "host", "none")
"""Networks that every node has of its own."""


class NodeFacts(msgspec.Struct, frozen=True):
    """What templates may ask about the node, and where it takes packets of networks ("": not known yet)."""

    id: str
    hostname: str = ""
    os: str = "linux"
    architecture: str = "x86_64"
    data_path_addr: str = ""


class ContainerPlan(msgspec.Struct, frozen=True):
    """A container to be created.

    Attributes:
        name: ``<service>.<slot or node ID>.<task ID>``.
        config: with ``Image`` as the service names it.
        host: without the mounts of secrets and configs.
        networking: the endpoints on the cluster's networks; None when the network mode says all.
        networks: the cluster's networks that it is on.
    """

    name: str
    config: ContainerConfig
    host: HostConfig
    networking: NetworkingConfig | None = None
    networks: tuple[Network, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether it is to be reached by the routing mesh."""
        return self.networking is not None and WAY_OUT.Name in (self.networking.EndpointsConfig or {})


def task_name(assignment: Assignment) -> str:
    """``<service>.<slot or node ID>.<task ID>``; a global service has no slots."""
    task = assignment.task
    return f"{assignment.spec_version.spec.name}.{_slot(task)}.{task.id}"


def _slot(task: Task) -> str:
    return str(task.slot) if task.slot else task.node_id


class Templates:
    """The templates of one task's spec: they share what ``.`` is (A10.13), and how much they may make."""

    def __init__(self, assignment: Assignment, node: NodeFacts) -> None:
        self._fields, self._budget = _template_fields(assignment, node), Budget(CHARACTERS_MAX)

    def expand(self, what: str, text: str, functions: Mapping[str, Function] | None = None) -> str:
        """Expand one. Raises ExecutorError that says where it was."""
        try:
            return expand(text, self._fields, functions, self._budget)
        except TemplateError as error:
            raise ExecutorError(f"expanding {what} failed: template: {error}") from None


def _template_fields(assignment: Assignment, node: NodeFacts) -> dict[str, Value]:
    spec, task = assignment.spec_version.spec, assignment.task
    return {
        "Service": {"ID": task.service_id, "Name": spec.name, "Labels": Labels(spec.labels)},
        "Node": {
            "ID": node.id,
            "Hostname": node.hostname,
            "Platform": {"OS": node.os, "Architecture": node.architecture},
        },
        "Task": {"ID": task.id, "Name": task_name(assignment), "Slot": _slot(task)},
    }


def plan_container(assignment: Assignment, node: NodeFacts) -> ContainerPlan:
    """Everything but the image, the secrets and the configs.

    Raises:
        ExecutorError: a template is wrong, or the node does not have what the spec asks for.
    """
    template = assignment.spec_version.spec.task_template
    spec = template.container_spec
    templates = Templates(assignment, node)
    ports = _host_ports(assignment)
    config = ContainerConfig(
        Image=spec.image,
        Hostname=templates.expand("hostname", spec.hostname),
        User=spec.user,
        Tty=spec.tty,
        OpenStdin=spec.open_stdin,
        Env=expand_env(assignment, templates),
        Entrypoint=list(spec.command) or None,
        Cmd=list(spec.args) or None,
        WorkingDir=spec.dir,
        Labels=_labels(assignment),
        StopSignal=spec.stop_signal,
        StopTimeout=math.ceil(spec.stop_grace_period_ns / 1e9) if spec.HasField("stop_grace_period_ns") else None,
        Healthcheck=_healthcheck(spec),
        ExposedPorts={port: {} for port in ports} or None,
    )
    mode, networking, networks = _plan_networks(assignment)
    host = _host_config(assignment, templates, ports, mode)
    return ContainerPlan(task_name(assignment), config, host, networking, networks)


def expand_env(assignment: Assignment, templates: Templates) -> list[str]:
    """The task's environment, templates expanded, assigned generic resources included. Raises ExecutorError."""
    spec = assignment.spec_version.spec.task_template.container_spec
    env = [templates.expand("env", entry) for entry in spec.env]
    resources: dict[str, list[str]] = {}
    for resource in assignment.task.assigned_generic_resources:
        if resource.WhichOneof("resource") == "named":
            resources.setdefault(resource.named.kind, []).append(resource.named.value)
        else:
            resources.setdefault(resource.discrete.kind, []).append(str(resource.discrete.value))
    return env + [f"DOCKER_RESOURCE_{kind.upper()}={','.join(values)}" for kind, values in resources.items()]


def _host_config(
    assignment: Assignment, templates: Templates, ports: dict[str, list[PortBinding] | None], mode: str
) -> HostConfig:
    template = assignment.spec_version.spec.task_template
    spec, resources = template.container_spec, template.resources
    limits, reservations = resources.limits, resources.reservations
    log_driver = template.log_driver if template.HasField("log_driver") else assignment.task.log_driver
    dns = spec.dns_config if spec.HasField("dns_config") else DNSConfig()
    return HostConfig(
        NetworkMode=mode,
        PortBindings=ports or None,
        LogConfig=LogConfig(Type=log_driver.name, Config=dict(log_driver.options) or None),
        Mounts=[_mount(mount, templates) for mount in spec.mounts] or None,
        CapAdd=list(spec.capability_add) or None,
        CapDrop=list(spec.capability_drop) or None,
        Dns=list(dns.nameservers) or None,
        DnsSearch=list(dns.search) or None,
        DnsOptions=list(dns.options) or None,
        ExtraHosts=[_extra_host(entry) for entry in spec.hosts] or None,
        GroupAdd=list(spec.groups) or None,
        Init=spec.init if spec.HasField("init") else None,
        Isolation=spec.isolation,
        OomScoreAdj=spec.oom_score_adj,
        ReadonlyRootfs=spec.read_only,
        SecurityOpt=_security_options(spec.privileges) or None,
        Sysctls=dict(spec.sysctls) or None,
        Ulimits=[Ulimit(Name=limit.name, Soft=limit.soft, Hard=limit.hard) for limit in spec.ulimits] or None,
        NanoCpus=limits.nano_cpus,
        Memory=limits.memory_bytes,
        MemoryReservation=reservations.memory_bytes,
        MemorySwap=_memory_swap(resources),
        MemorySwappiness=resources.memory_swappiness if resources.HasField("memory_swappiness") else None,
        PidsLimit=limits.pids or None,
    )


def _labels(assignment: Assignment) -> dict[str, str]:
    """The container's labels, not the service's; ours win (A5.13)."""
    spec, task = assignment.spec_version.spec, assignment.task
    return {
        **spec.task_template.container_spec.labels,
        f"{LABEL}.task": "",
        TASK_ID_LABEL: task.id,
        f"{LABEL}.task.name": task_name(assignment),
        f"{LABEL}.node.id": task.node_id,
        f"{LABEL}.service.id": task.service_id,
        f"{LABEL}.service.name": spec.name,
    }


def _healthcheck(spec: ContainerSpec) -> HealthConfig | None:
    if not spec.HasField("healthcheck"):
        return None
    check = spec.healthcheck
    return HealthConfig(
        Test=list(check.test) or None,
        Interval=check.interval_ns,
        Timeout=check.timeout_ns,
        StartPeriod=check.start_period_ns,
        StartInterval=check.start_interval_ns,
        Retries=check.retries,
    )


def _host_ports(assignment: Assignment) -> dict[str, list[PortBinding] | None]:
    """Ports published in host mode, by ``80/tcp``; those of the routing mesh are not the container's affair."""
    ports: dict[str, list[PortBinding] | None] = {}
    for port in assignment.spec_version.spec.endpoint_spec.ports:
        if _is_mesh(port):
            continue
        name = protocol_word(port.protocol or PortProtocol.PORT_PROTOCOL_TCP)
        bindings = ports.setdefault(f"{port.target_port}/{name}", [])
        assert bindings is not None
        bindings.append(PortBinding(HostPort=str(port.published_port) if port.published_port else ""))
    return ports


def _plan_networks(assignment: Assignment) -> tuple[str, NetworkingConfig | None, tuple[Network, ...]]:
    """The container's network mode, its endpoints on the cluster's networks, and these. Raises ExecutorError."""
    spec = assignment.spec_version.spec
    targets = [network.target for network in (spec.task_template.networks or spec.networks)]
    own = [target for target in targets if target in NETWORK_MODES]
    addresses = {each.network_id: each.addresses for each in assignment.task.networks_attachments}
    known = assignment.needed.of(Network)
    networks = []
    for target in targets:
        if target in NETWORK_MODES:
            continue
        if target not in known or target not in addresses:
            raise ExecutorError(f"network {target} not found")
        networks.append(known[target])
    is_published = any(map(_is_mesh, spec.endpoint_spec.ports))
    if len(own) > 1 or (own and own != ["bridge"] and (networks or is_published)):
        what = " and ports on every node" if is_published else ""
        raise ExecutorError(f"a task cannot be on these networks at once: {', '.join(targets)}{what}")
    if not networks and not is_published:
        return own[0] if own else "bridge", None, ()
    endpoints: dict[str, EndpointSettings | None] = {each.spec.name: _endpoint(addresses[each.id]) for each in networks}
    endpoints.update(dict.fromkeys(own, EndpointSettings()))
    if is_published:
        endpoints[WAY_OUT.Name] = EndpointSettings()
    return next(iter(endpoints)), NetworkingConfig(EndpointsConfig=endpoints), tuple(networks)


def _is_mesh(port: PortConfig) -> bool:
    return port.publish_mode != PublishMode.PUBLISH_MODE_HOST


def _endpoint(addresses: Iterable[str]) -> EndpointSettings:
    """With the addresses that the managers gave, CIDR form, one an address family. Its names are the service's affair."""
    plain = [address.partition("/")[0] for address in addresses]
    v4, v6 = (next((each for each in plain if (":" in each) == is_v6), "") for is_v6 in (False, True))
    return EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address=v4, IPv6Address=v6))


def _mount(mount: MountSpec, templates: Templates) -> Mount:
    volume = bind = tmpfs = None
    if mount.HasField("bind_options"):
        options = mount.bind_options
        bind = BindOptions(
            Propagation=options.propagation,
            NonRecursive=options.non_recursive,
            CreateMountpoint=options.create_mountpoint,
            ReadOnlyNonRecursive=options.read_only_non_recursive,
            ReadOnlyForceRecursive=options.read_only_force_recursive,
        )
    if mount.HasField("volume_options"):
        wanted = mount.volume_options
        driver = None
        if wanted.HasField("driver_config"):
            driver_options = _expand_values(wanted.driver_config.options, templates)
            driver = VolumeDriverConfig(Name=wanted.driver_config.name, Options=driver_options or None)
        volume = VolumeOptions(
            NoCopy=wanted.no_copy,
            Labels=_expand_values(wanted.labels, templates) or None,
            Subpath=wanted.subpath,
            DriverConfig=driver,
        )
    if mount.HasField("tmpfs_options"):
        tmpfs = TmpfsOptions(SizeBytes=mount.tmpfs_options.size_bytes, Mode=mount.tmpfs_options.mode)
    return Mount(
        Type=mount.type or "volume",
        Source=templates.expand("mount", mount.source),
        Target=templates.expand("mount", mount.target),
        ReadOnly=mount.read_only,
        Consistency=mount.consistency,
        BindOptions=bind,
        VolumeOptions=volume,
        TmpfsOptions=tmpfs,
    )


def _expand_values(options: Mapping[str, str], templates: Templates) -> dict[str, str]:
    return {name: templates.expand("mount", value) for name, value in options.items()}


def _extra_host(entry: str) -> str:
    """``ip name`` of a service is ``name:ip`` of a container."""
    address, _, names = entry.strip().partition(" ")
    return f"{names.strip()}:{address}" if names.strip() else entry


def _memory_swap(resources: ResourceRequirements) -> int:
    """The engine counts memory and swap together; -1 is unlimited, 0 unset."""
    if not resources.HasField("swap_bytes"):
        return 0
    if resources.swap_bytes < 0:
        return -1
    return resources.limits.memory_bytes + resources.swap_bytes


def _security_options(privileges: Privileges) -> list[str]:
    options: list[str] = []
    if privileges.no_new_privileges:
        options.append("no-new-privileges=true")
    if privileges.seccomp.mode == "unconfined":
        options.append("seccomp=unconfined")
    elif privileges.seccomp.mode == "custom":
        options.append("seccomp=" + privileges.seccomp.profile.decode(errors="replace"))
    if privileges.apparmor.mode == "disabled":
        options.append("apparmor=unconfined")
    selinux = privileges.selinux_context
    if selinux.disable:
        options.append("label=disable")
    labels = {name: getattr(selinux, name) for name in ("user", "role", "type", "level")}
    return options + [f"label={name}:{value}" for name, value in labels.items() if value]


def registry_auth(text: str) -> RegistryAuth | None:
    """Credentials as the API's ``X-Registry-Auth`` carries them (base64url JSON); None for none.

    Raises:
        ExecutorError: they cannot be read; nothing of them is in the message.
    """
    if not text:
        return None
    try:
        fields = read_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=dict[str, object])
    except (binascii.Error, ValueError):  # msgspec's errors are ValueErrors
        raise ExecutorError("the registry credentials stored with the service cannot be read") from None

    def field(name: str) -> str:
        return str(fields.get(name) or "")

    return RegistryAuth(
        username=field("username"),
        password=field("password"),
        identity_token=field("identitytoken"),
        registry_token=field("registrytoken"),
        server_address=field("serveraddress"),
    )
