"""Each bad spec gets one error, with SwarmKit's words; what is not served yet is said."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from manager.control.defaults import complete_cluster_spec
from manager.control.errors import ControlError, InvalidArgumentError, InvalidRequestError, UnimplementedError
from manager.control.validation import (
    validate_cluster_spec,
    validate_config_spec,
    validate_node_spec,
    validate_secret_spec,
    validate_service_spec,
)
from manager.model.defaults import normalize_service_spec, update_rules
from proto.objects_pb2 import Cluster
from proto.specs_pb2 import (
    ClusterSpec,
    EndpointMode,
    GenericResource,
    Mount,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    PortConfig,
    PublishMode,
    ServiceSpec,
)
from tests.unit.control.builders import config_spec, secret_spec, service_spec


def check(spec: ServiceSpec) -> None:
    validate_service_spec(normalize_service_spec(spec))


def host_port(published: int, target: int = 80) -> PortConfig:
    return PortConfig(published_port=published, target_port=target, publish_mode=PublishMode.PUBLISH_MODE_HOST)


def test_a_plain_service_is_valid() -> None:
    check(service_spec())


Change = Callable[[ServiceSpec], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.ClearField("name"), "meta: name must be provided"),
        (lambda s: setattr(s, "name", "-web"), "name must be valid as a DNS name component"),
        (lambda s: setattr(s, "name", "web.1"), "name must be valid as a DNS name component"),
        (lambda s: setattr(s, "name", "web\n"), "name must be valid as a DNS name component"),
        (lambda s: setattr(s, "name", "w" * 64), "name must be 63 characters or fewer"),
        (lambda s: s.task_template.ClearField("container_spec"), "TaskSpec: missing runtime"),
        (lambda s: setattr(s.task_template, "runtime", "wasm"), 'unsupported runtime type: "wasm"'),
        (lambda s: s.task_template.container_spec.ClearField("image"), "ContainerSpec: image reference must be provided"),
        (lambda s: setattr(s.task_template.container_spec, "image", "A B"), 'ContainerSpec: "A B" is not a valid repository/tag'),
        (lambda s: setattr(s.task_template.resources.limits, "nano_cpus", 999), "invalid cpu value 9.99e-07: Must be at least 0.001"),
        (lambda s: setattr(s.task_template.resources.reservations, "memory_bytes", 4 * 1024 * 1024 - 1), "invalid memory value 4194303: Must be at least 4MiB"),
        (lambda s: setattr(s.task_template.restart_policy, "delay_ns", -1), "TaskSpec: restart-delay cannot be negative"),
        (lambda s: setattr(s.task_template.restart_policy, "window_ns", -1), "TaskSpec: restart-window cannot be negative"),
        (lambda s: setattr(s.update_config, "delay_ns", -1), "TaskSpec: update-delay cannot be negative"),
        (lambda s: setattr(s.rollback_config, "monitor_ns", -1), "TaskSpec: update-monitor cannot be negative"),
        (lambda s: setattr(s.update_config, "max_failure_ratio", 1.1), "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        (lambda s: setattr(s.update_config, "max_failure_ratio", float("nan")), "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        (lambda s: s.task_template.container_spec.mounts.extend([Mount(target="/a"), Mount(target="/a")]), "ContainerSpec: duplicate mount point: /a"),
        (lambda s: s.task_template.container_spec.mounts.add(type="floppy", target="/a"), 'invalid MountType: "floppy"'),
        (lambda s: setattr(s.task_template.container_spec.healthcheck, "interval_ns", 5), "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"),
        (lambda s: setattr(s.task_template.container_spec.healthcheck, "retries", -1), "ContainerSpec: Retries in HealthConfig cannot be negative"),
        (lambda s: s.task_template.container_spec.secrets.add(secret_id="x"), "malformed secret reference"),
        (lambda s: s.task_template.container_spec.configs.add(config_id="x", config_name="y"), "malformed config reference, no target provided"),
        (lambda s: s.endpoint_spec.ports.extend([host_port(80), host_port(80, 81)]), "EndpointSpec: duplicate published ports provided"),
        (lambda s: s.endpoint_spec.ports.append(host_port(65536)), "EndpointSpec: invalid port 65536:80, want numbers up to 65535"),
        (lambda s: s.task_template.resources.limits.generic_resources.append(GenericResource()), "generic resources can be reserved, not limited"),
        (lambda s: setattr(s.task_template.container_spec, "oom_score_adj", 1001), "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
    ],
)  # fmt: skip
def test_a_bad_service_is_refused(change: Change, message: str) -> None:
    spec = service_spec()
    change(spec)
    with pytest.raises(InvalidArgumentError) as caught:
        check(spec)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.mode.replicated_job.SetInParent(), "services of mode replicated-job are not served yet"),
        (lambda s: s.mode.global_job.SetInParent(), "services of mode global-job are not served yet"),
        (lambda s: setattr(s.task_template, "runtime", "plugin"), "tasks of runtime plugin are not served yet"),
        (lambda s: s.task_template.container_spec.mounts.add(type="cluster", target="/a"), "mounts of type cluster are not served yet"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_said(change: Change, words: str) -> None:
    spec = service_spec()
    change(spec)
    with pytest.raises(UnimplementedError, match=words):
        check(spec)


def test_a_constraint_that_cannot_be_parsed_is_refused() -> None:
    spec = service_spec()
    spec.task_template.placement.constraints.append("node.role=manager")
    with pytest.raises(InvalidArgumentError, match="constraint expected one operator from ==, !="):
        check(spec)


def test_predefined_networks_and_host_ports_are_served() -> None:
    spec = service_spec()
    spec.task_template.networks.add(target="host")
    spec.endpoint_spec.mode = EndpointMode.ENDPOINT_MODE_DNSRR
    spec.endpoint_spec.ports.extend([host_port(80), host_port(0), host_port(0)])
    check(spec)


def test_two_references_of_one_target_conflict() -> None:
    spec = service_spec()
    for name in ("a", "b"):
        reference = spec.task_template.container_spec.secrets.add(secret_id=name, secret_name=name)
        reference.file.name = "target"
    with pytest.raises(InvalidArgumentError, match="secret references 'a' and 'b' have a conflicting target: 'target'"):
        check(spec)


def test_a_hostile_name_costs_no_time() -> None:
    began = time.process_time()
    for name in ("a" * 100_000 + "!", "a-" * 50_000):
        with pytest.raises(ControlError):
            check(service_spec(name))
        with pytest.raises(ControlError):
            check(service_spec(image=name))
    assert time.process_time() - began < 60  # it takes a second, or for ever


@pytest.mark.parametrize("size", [0, 500 * 1024])
def test_a_secret_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="secret data must be larger than 0 and less than 512000 bytes"):
        validate_secret_spec(secret_spec(data=b"x" * size))
    validate_secret_spec(secret_spec(data=b"x" * (500 * 1024 - 1)))


def test_a_config_of_impossible_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="config data must be larger than 0 and less than 1024000 bytes"):
        validate_config_spec(config_spec(data=b"x" * 1000 * 1024))
    validate_config_spec(config_spec(data=b"x" * (1000 * 1024 - 1)))


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a" * 65, "ä", "a\n"])
def test_a_bad_secret_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        validate_secret_spec(secret_spec(name))


def test_secrets_of_drivers_and_templates_are_not_served() -> None:
    spec = secret_spec()
    spec.driver.name = "vault"
    with pytest.raises(UnimplementedError):
        validate_secret_spec(spec)
    templated = config_spec()
    templated.templating.name = "golang"
    with pytest.raises(UnimplementedError):
        validate_config_spec(templated)


def test_a_node_spec_says_role_and_availability() -> None:
    with pytest.raises(InvalidRequestError, match='invalid Role: ""'):
        validate_node_spec(NodeSpec())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "name", "mine"), 'swarm spec must be named "default"'),
        (lambda s: setattr(s.ca_config, "node_cert_expiry_ns", 1800 * 10**9), "minimum certificate expiry time is: 1h0m0s"),
        (lambda s: setattr(s.dispatcher, "heartbeat_period_ns", -1), "heartbeat time period cannot be a negative duration"),
        (lambda s: setattr(s.encryption_config, "auto_lock_managers", True), "autolock is not served yet"),
        (lambda s: setattr(s.ca_config, "force_rotate", 1), "rotation of the root certificate is not served yet"),
    ],
)  # fmt: skip
def test_a_bad_cluster_spec_is_refused(change: Callable[[ClusterSpec], object], message: str) -> None:
    spec = complete_cluster_spec(ClusterSpec())
    validate_cluster_spec(spec, Cluster())
    change(spec)
    with pytest.raises(ControlError) as caught:
        validate_cluster_spec(spec, Cluster())
    assert str(caught.value) == message


@pytest.mark.parametrize("image", ["Busybox", ":tag", "busybox@sha256:short", "a" * 64, "http://example.com/app"])
def test_what_is_no_image_reference_is_refused(image: str) -> None:
    """The grammar is ``base.image_reference``'s."""
    with pytest.raises(InvalidArgumentError, match="is not a valid repository/tag"):
        check(service_spec(image=image))


@pytest.mark.parametrize("text", ["", "0s", "5", "-5m", "5 m", "m5", "1d", "\u0665m"])
def test_a_progress_deadline_that_is_no_time_is_refused(text: str) -> None:
    spec = service_spec()
    spec.labels["swarm.update.progress-deadline"] = text
    with pytest.raises(InvalidArgumentError, match=r"label swarm\.update\.progress-deadline: want a time like"):
        check(spec)
    assert update_rules(spec, rollback=False).progress_deadline_s is None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h1m1s", 3661)])
def test_a_progress_deadline_is_hours_minutes_seconds(text: str, seconds: float) -> None:
    spec = service_spec()
    spec.labels["swarm.update.progress-deadline"] = text
    check(spec)
    assert update_rules(spec, rollback=True).progress_deadline_s == seconds


def test_a_spec_that_no_leader_could_write_again_is_refused() -> None:
    """A service is written with its previous spec, a node with what it says of itself, each as one log entry."""
    text = "x" * 1_000_000
    service = service_spec()
    service.labels["a"] = text
    node = NodeSpec(role=NodeRole.NODE_ROLE_WORKER, availability=NodeAvailability.NODE_AVAILABILITY_ACTIVE)
    validate_node_spec(node)
    node.labels["a"] = text
    cluster = complete_cluster_spec(ClusterSpec())
    cluster.labels["a"] = text
    secret, config = secret_spec(), config_spec()
    secret.labels["a"] = config.labels["a"] = text
    checks: list[Callable[[], None]] = [
        lambda: check(service),
        lambda: validate_node_spec(node),
        lambda: validate_cluster_spec(cluster, Cluster()),
        lambda: validate_secret_spec(secret),
        lambda: validate_config_spec(config),
    ]
    for refused in checks:
        with pytest.raises(InvalidArgumentError, match=r"spec too large: 10000.. bytes, at most 1000000"):
            refused()


@pytest.mark.parametrize("period_ns", [1, 99_999_999, 24 * 3600 * 10**9 + 1, 2**63 - 1])
def test_a_heartbeat_period_that_no_node_can_keep_is_refused(period_ns: int) -> None:
    spec = complete_cluster_spec(ClusterSpec())
    spec.dispatcher.heartbeat_period_ns = period_ns
    with pytest.raises(InvalidArgumentError, match=r"invalid heartbeat time period: .*s, want 100ms to 24h"):
        validate_cluster_spec(spec, Cluster())


def test_more_placement_preferences_than_the_scheduler_has_stack_for_are_refused() -> None:
    """900 of them ended the loop of one leader after another by a RecursionError."""
    spec = service_spec()
    for _ in range(32):
        spec.task_template.placement.preferences.add().spread.spread_descriptor = "node.labels.zone"
    check(spec)
    spec.task_template.placement.preferences.add()
    with pytest.raises(InvalidArgumentError, match="too many placement preferences: 33, at most 32"):
        check(spec)
