"""What absent means: written down where the API answers it anyway, left out where a 0 would differ."""

from __future__ import annotations

from manager.control.defaults import (
    complete_cluster_spec,
    fill_cluster,
    redacted_cluster,
)
from manager.model.defaults import insert_defaults, normalize_service_spec
from proto.objects_pb2 import Cluster
from proto.specs_pb2 import (
    ClusterSpec,
    EndpointMode,
    FailureAction,
    PortProtocol,
    PublishMode,
    RestartCondition,
    ServiceSpec,
    UpdateOrder,
)
from tests.unit.control.builders import service_spec


def test_normalising_writes_down_implied_choices() -> None:
    spec = ServiceSpec(name="web")
    spec.task_template.container_spec.image = "busybox"
    spec.task_template.restart_policy.SetInParent()
    spec.update_config.parallelism = 0
    spec.endpoint_spec.ports.add(target_port=80)
    spec.networks.add(target="host")
    full = normalize_service_spec(spec)
    assert full.mode.replicated.replicas == 1
    assert full.task_template.restart_policy.condition == RestartCondition.RESTART_CONDITION_ANY
    assert full.update_config.failure_action == FailureAction.FAILURE_ACTION_PAUSE
    assert full.update_config.order == UpdateOrder.UPDATE_ORDER_STOP_FIRST
    assert full.endpoint_spec.mode == EndpointMode.ENDPOINT_MODE_VIP
    assert full.endpoint_spec.ports[0].protocol == PortProtocol.PORT_PROTOCOL_TCP
    assert full.endpoint_spec.ports[0].publish_mode == PublishMode.PUBLISH_MODE_INGRESS
    assert [network.target for network in full.task_template.networks] == ["host"]
    assert not full.networks
    assert normalize_service_spec(full) == full


def test_a_zero_that_was_sent_stays() -> None:
    spec = service_spec(replicas=0)
    spec.update_config.parallelism = 0
    spec.task_template.restart_policy.delay_ns = 0
    full = insert_defaults(normalize_service_spec(spec))
    assert full.mode.replicated.replicas == 0
    assert full.update_config.parallelism == 0
    assert full.task_template.restart_policy.delay_ns == 0


def test_absent_stays_absent_unless_defaults_are_asked_for() -> None:
    full = normalize_service_spec(service_spec())
    assert not full.HasField("update_config")
    assert not full.task_template.HasField("restart_policy")
    shown = insert_defaults(full)
    assert shown.update_config.parallelism == 1
    assert shown.rollback_config.monitor_ns == 5 * 10**9
    assert shown.task_template.restart_policy.delay_ns == 5 * 10**9
    assert shown.task_template.container_spec.stop_grace_period_ns == 10 * 10**9


def test_a_cluster_spec_falls_to_its_defaults() -> None:
    full = complete_cluster_spec(ClusterSpec())
    assert full.name == "default"
    assert full.orchestration.task_history_retention_limit == 5
    assert full.raft.snapshot_interval == 10_000
    assert full.dispatcher.heartbeat_period_ns == 5 * 10**9
    assert full.ca_config.node_cert_expiry_ns == 2160 * 3600 * 10**9
    zero = ClusterSpec()
    zero.orchestration.task_history_retention_limit = 0
    assert complete_cluster_spec(zero).orchestration.task_history_retention_limit == 0


def test_keys_never_leave_the_managers() -> None:
    cluster = Cluster(id="c", unlock_key=b"key")
    cluster.root_ca.ca_key_pem = b"key"
    cluster.root_ca.join_tokens.worker = "token"
    cluster.spec.ca_config.signing_ca_key = "key"
    shown = redacted_cluster(cluster, tokens=False)
    assert b"key" not in shown.SerializeToString()
    assert b"token" not in shown.SerializeToString()
    assert redacted_cluster(cluster, tokens=True).root_ca.join_tokens.worker == "token"


def test_a_new_cluster_has_its_defaults_written_down() -> None:
    cluster = Cluster(id="c")
    fill_cluster(cluster)
    assert (list(cluster.default_addr_pool), cluster.subnet_size, cluster.data_path_port) == (["10.0.0.0/8"], 24, 4789)
    assert cluster.spec == complete_cluster_spec(ClusterSpec())
    chosen = Cluster(id="c", default_addr_pool=["10.1.0.0/16"], subnet_size=26, data_path_port=5000)
    fill_cluster(chosen)
    assert (list(chosen.default_addr_pool), chosen.subnet_size, chosen.data_path_port) == (["10.1.0.0/16"], 26, 5000)
