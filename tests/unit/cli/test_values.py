"""What users write in flags, as the API's values."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cli import output, service_spec, values


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("1ns", 1),
        ("1us", 1000),
        ("1µs", 1000),
        ("1.5h", 5_400 * 10**9),
        ("1m30s", 90 * 10**9),
        ("-2s", -2 * 10**9),
        (".5s", 500_000_000),
    ],
)
def test_durations_are_go_durations(text: str, ns: int) -> None:
    assert values.duration_ns(text) == ns


@pytest.mark.parametrize("text", ["", "5", "s", "1", "1x", "1s ", "--1s", "1e9s", "9" * 30 + "h", "1s1"])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        values.duration_ns(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1500, "1.5µs"),
        (2_000_000, "2ms"),
        (10**10, "10s"),
        (90 * 10**9, "1m30s"),
        (3600 * 10**9, "1h0m0s"),
        (-(10**9), "-1s"),
    ],
)
def test_durations_are_printed_as_go_does(ns: int, text: str) -> None:
    assert values.duration_text(ns) == text


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("64m", 2**26), ("64MB", 2**26), ("1.5GiB", 3 * 2**29), ("1 k", 1024), ("0", 0)]
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert values.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1z", "1mm", "9999999999p", "1.", "٣m"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        values.size_bytes(text)


def test_cpus_are_exact() -> None:
    assert values.nano_cpus("0.3") == 300_000_000
    for text in ("", "nan", "inf", "-1", "1e3", "0.0000000001", "9" * 20):
        with pytest.raises(ValueError, match=r"rational|precise|range"):
            values.nano_cpus(text)


def test_ports() -> None:
    assert values.port("8080:80") == [
        {"Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress", "PublishedPort": 8080}
    ]
    assert [(one["PublishedPort"], one["TargetPort"]) for one in values.port("90-91:80-81/udp")] == [(90, 80), (91, 81)]
    assert values.port("53/udp") == [{"Protocol": "udp", "TargetPort": 53, "PublishMode": "ingress"}]
    long = values.port("published=1,target=2,mode=host,protocol=udp")
    assert long == [{"Protocol": "udp", "TargetPort": 2, "PublishMode": "host", "PublishedPort": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "0:80",
        "80:70000",
        "1-3:1-2",
        "3-1",
        "x",
        "80/icmp",
        "1.2.3.4:80:80",
        "target=x",
        "published=80",
        "mode=x,target=1",
        "target=1,what=2",
    ],
)
def test_what_is_no_port_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        values.port(text)


def test_mounts() -> None:
    assert values.mount("src=data,dst=/d,readonly") == {
        "Type": "volume",
        "Source": "data",
        "Target": "/d",
        "ReadOnly": True,
    }
    quoted = values.mount('type=volume,target=/d,"volume-opt=o=a,b",volume-driver=nfs')
    assert quoted["VolumeOptions"]["DriverConfig"] == {"Options": {"o": "a,b"}, "Name": "nfs"}
    tmpfs = values.mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777")
    assert tmpfs["TmpfsOptions"] == {"SizeBytes": 2**20, "Mode": 0o1777}
    for text in (
        "",
        "source=x",
        "target=/x,what=1",
        "type=bind,target=/x,volume-nocopy=1",
        "target=/x,tmpfs-mode=9",
        '"target=/x',
    ):
        with pytest.raises(ValueError, match=r"\S"):
            values.mount(text)


def test_ulimits() -> None:
    assert values.ulimit("nofile=10:20") == {"Name": "nofile", "Soft": 10, "Hard": 20}
    assert values.ulimit("nproc=-1") == {"Name": "nproc", "Soft": -1, "Hard": -1}
    for text in ("", "nofile", "nofile=", "nofile=x", "nofile=20:10", "=1"):
        with pytest.raises(ValueError, match="ulimit"):
            values.ulimit(text)


def test_file_references() -> None:
    assert values.file_reference("pass") == {
        "Source": "pass",
        "File": {"Name": "pass", "UID": "0", "GID": "0", "Mode": 0o444},
    }
    assert values.file_reference("source=a,target=/b,mode=0400,uid=5")["File"] == {
        "Name": "/b",
        "UID": "5",
        "GID": "0",
        "Mode": 0o400,
    }
    for text in ("target=x", "source=a,mode=999", "source=a,bad=1", ""):
        with pytest.raises(ValueError, match=r"\S"):
            values.file_reference(text)


def test_environment_takes_values_from_the_caller_and_the_last_of_a_name_counts() -> None:
    assert values.environment(["A=1", "B", "C", "A=2"], {"B": "b"}) == ["A=2", "B=b"]
    assert values.environment_file("# c\n\n A=1 \nB\n") == ["A=1 ", "B"]
    with pytest.raises(ValueError, match="whitespaces"):
        values.environment_file("A B=1")


def test_update_adds_replaces_and_removes_entries() -> None:
    spec: dict[str, Any] = {"TaskTemplate": {"ContainerSpec": {"Env": ["A=1", "B=2"], "Hosts": ["1.1.1.1 a b"]}}}
    service_spec.remove_entries(spec, "env", ["B", "Z"])
    service_spec.add_entries(spec, "env", ["A=9", "C=3"])
    service_spec.remove_entries(spec, "host", ["a"])
    assert spec["TaskTemplate"]["ContainerSpec"] == {"Env": ["A=9", "C=3"], "Hosts": ["1.1.1.1 b"]}
    service_spec.add_entries(spec, "publish", values.port("80:80") + values.port("53:53/udp"))
    service_spec.remove_entries(spec, "publish", ["80"])
    assert [port["TargetPort"] for port in spec["EndpointSpec"]["Ports"]] == [53]
    service_spec.add_entries(spec, "placement_pref", [service_spec.preference("spread=node.labels.a")])
    service_spec.remove_entries(spec, "placement_pref", ["spread=node.labels.a"])
    assert spec["TaskTemplate"]["Placement"]["Preferences"] == []
    service_spec.add_entries(spec, "generic_resource", [service_spec.generic_resource("gpu=2")])
    service_spec.remove_entries(spec, "generic_resource", ["gpu"])
    assert spec["TaskTemplate"]["Resources"]["Reservations"]["GenericResources"] == []


def test_no_healthcheck_does_not_go_with_the_other_health_flags() -> None:
    spec: dict[str, Any] = {}
    service_spec.apply_settings(spec, {"no_healthcheck": True})
    assert spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] == {"Test": ["NONE"]}
    service_spec.apply_settings(spec, {"health_cmd": service_spec.health_test("true")})
    assert spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
    with pytest.raises(ValueError, match="conflicts"):
        service_spec.apply_settings({}, {"no_healthcheck": True, "health_retries": 3})


def test_sizes_are_printed_as_go_units_does() -> None:
    assert [output.human_size(size, 3) for size in (0, 999, 1000, 4_261_550, 999_999)] == [
        "0B",
        "999B",
        "1kB",
        "4.26MB",
        "1e+03kB",
    ]
    assert [output.binary_size(size) for size in (1023, 2**20, 4_123_456_789)] == ["1023B", "1MiB", "3.84GiB"]


def test_times_of_any_kind() -> None:
    assert output.go_time("2026-01-02T03:04:05.120000000Z") == "2026-01-02 03:04:05.12 +0000 utc"
    assert output.age("0001-01-01T00:00:00Z") == output.age("") == output.age("yesterday") == ""
    assert re.fullmatch(r"\d+ \w+", output.age("2020-01-02T03:04:05+02:00"))


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["web.10", "web.9", "web", "10", "9", "a1b2"], key=output.natural) == [
        "9",
        "10",
        "a1b2",
        "web",
        "web.9",
        "web.10",
    ]
