"""Which keys a Compose file may have. One table a place (features A13.07 to A13.11)."""

from __future__ import annotations

TOP = {"version", "services", "configs", "secrets", "volumes", "networks"}

SERVICE = {
    *("image", "command", "entrypoint", "environment", "env_file", "labels", "deploy", "healthcheck", "logging"),
    *("dns", "dns_search", "dns_opt", "extra_hosts", "hostname", "init", "user", "group_add", "working_dir", "tty"),
    *("stdin_open", "stop_grace_period", "stop_signal", "read_only", "tmpfs", "volumes", "cap_add", "cap_drop"),
    *("sysctls", "ulimits", "oom_score_adj", "configs", "secrets", "ports", "networks", "network_mode", "isolation"),
    "restart",
}
# Keys of the format that the model has not: who deploys a file says what becomes of one that uses them.
SERVICE_UNREAD = {
    *("build", "cgroupns_mode", "cgroup_parent", "devices", "domainname", "external_links", "ipc", "links"),
    *("mac_address", "pid", "privileged", "security_opt", "shm_size", "userns_mode"),
    *("depends_on", "container_name", "expose", "pull_policy", "profiles"),
    *("cpu_quota", "cpu_shares", "cpuset", "mem_limit", "memswap_limit"),
    *("extends", "volume_driver", "volumes_from", "credential_spec"),
}

DEPLOY = {
    *("mode", "replicas", "endpoint_mode", "labels", "update_config", "rollback_config", "resources"),
    *("restart_policy", "placement"),
}
UPDATE = {"parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order"}
RESTART = {"condition", "delay", "max_attempts", "window"}
PLACEMENT = {"constraints", "preferences", "max_replicas_per_node"}
RESOURCES = {"limits", "reservations"}
LIMITS = {"cpus", "memory", "pids"}
RESERVATIONS = {"cpus", "memory", "generic_resources"}
HEALTHCHECK = {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
LOGGING = {"driver", "options"}
NETWORK = {"driver", "driver_opts", "ipam", "external", "internal", "attachable", "labels", "name"}
IPAM = {"driver", "config"}
IPAM_CONFIG = {"subnet"}
NETWORK_REFERENCE = {"aliases", "driver_opts"}
NETWORK_REFERENCE_UNREAD = {"ipv4_address", "ipv6_address"}
VOLUME = {"driver", "driver_opts", "external", "labels", "name"}
PAYLOAD = {"file", "content", "environment", "external", "name", "labels", "template_driver"}
PAYLOAD_REFERENCE = {"source", "target", "uid", "gid", "mode"}
PORT = {"target", "published", "protocol", "mode", "name"}
MOUNT = {"type", "source", "target", "read_only", "consistency", "bind", "volume", "tmpfs"}
MOUNT_BIND = {"propagation", "create_host_path", "recursive"}
MOUNT_VOLUME = {"nocopy", "subpath"}
MOUNT_TMPFS = {"size", "mode"}
ENV_FILE = {"path", "required"}
GENERIC_RESOURCE = {"discrete_resource_spec"}
DISCRETE_RESOURCE = {"kind", "value"}
PREFERENCE = {"spread"}
ULIMIT = {"soft", "hard"}
