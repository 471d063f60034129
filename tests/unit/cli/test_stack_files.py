"""Stack files: scalars, lines in refusals, interpolation, merging, and what a hostile file costs."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cli import values
from cli.composefile import keys
from cli.composefile.interpolation import interpolate
from cli.composefile.merge import merge
from cli.composefile.parse import parse
from cli.composefile.reader import read
from cli.composefile.source import ManifestError
from cli.stack.convert import Stack, convert
from cli.stack.names import Namespace
from cli.stack.service import REFUSED
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import DONE, FakeEngine

NETWORKS = {"GET /networks": [], "POST /networks/create": {"Id": "net"}}
"""Routes: there are no networks, and some can be made."""


def stack(text: str, **environment: str) -> Stack:
    return convert(read(parse(text, "f.yml", Path(), environment), environment), Namespace("s"))


def web(body: str, **environment: str) -> dict[str, Any]:
    """The ContainerSpec of a service with these lines."""
    found = stack(f"services:\n  web:\n    image: i\n    {body}\n", **environment)
    spec: dict[str, Any] = found.services[0]["TaskTemplate"]["ContainerSpec"]
    return spec


def test_scalars_are_those_of_yaml_1_2_with_octal_modes() -> None:
    text = "a: 22:22\nb: on\nc: 0440\nd: 1.10\ne: 2026-01-01\nf: true\ng: 0x10\nh: 1_000\ni: ~\n"
    value = parse(text, "f", Path(), None).value
    assert value == {
        "a": "22:22",
        "b": "on",
        "c": 0o440,
        "d": 1.1,
        "e": "2026-01-01",
        "f": True,
        "g": 16,
        "h": "1_000",
        "i": None,
    }


def test_what_a_variable_brings_in_is_text() -> None:
    assert web("environment: {V: $X}", X="1.10")["Env"] == ["V=1.10"]
    assert web("environment: {V: $X}", X="0440")["Env"] == ["V=0440"]
    assert web("read_only: $X", X="true")["ReadOnly"] is True


@pytest.mark.parametrize(
    ("text", "result"),
    [
        *(
            ("$A ${A} $$A ${A:-x}", "1 1 $A 1"),
            ("${N:-x}${N-y}${E:-z}[${E-w}]", "xyz[]"),
            ("${A:+p}${N+q}${E+r}", "pr"),
        ),
        *(
            ("${N:-${M:-${A}}}", "1"),
            ("${N:-a b}", "a b"),
            ("$", None),
            ("${", None),
            ("${A", None),
            ("${A!}", None),
            ("$1", None),
        ),
        *(("${N:?no ${A}}", None), ("${E?set}", ""), ("${N:-" * 40 + "}" * 40, None)),
    ],
)
def test_interpolation(text: str, result: str | None) -> None:
    environment = {"A": "1", "E": ""}
    if result is not None:
        assert interpolate(text, environment) == result
        return
    with pytest.raises(ValueError, match=r"interpolation|required variable N is missing a value: no 1"):
        interpolate(text, environment)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("services:\n  web:\n    image: i\n    imge: x\n", "f.yml:4: services.web.imge: unknown key"),
        ("services:\n  web:\n    image: i\n    mem_limit: 1\n", "f.yml:4: services.web.mem_limit: set resource limits"),
        ("services:\n  web:\n    command: x\n", "f.yml:2: services.web: needs an image"),
        ("name: x\nservices: {}\n", "f.yml:1: name: unknown key"),
        ("version: '2'\nservices: {w: {image: i}}\n", "f.yml:1: version: unsupported Compose file version: 2"),
        ("services:\n  web:\n    image: i\n    ports:\n    - 80:80\n    - 80:x\n", "f.yml:6: services.web.ports.1: "),
        (
            "services:\n  web:\n    image: i\n    deploy:\n      replicas: many\n",
            "f.yml:5: services.web.deploy.replicas: want an integer",
        ),
        ("services:\n  web:\n    image: i\n    deploy: [1]\n", "f.yml:4: services.web.deploy: must be a mapping"),
        (
            "services:\n  web:\n    image: i\n    deploy: {placement: {constraints: {a: b}}}\n",
            "f.yml:4: services.web.deploy.placement.constraints: must be text",
        ),
        (
            "services:\n  web:\n    image: i\n    configs: [nope]\n",
            "f.yml:4: services.web.configs.0: undefined config 'nope'",
        ),
        (
            "services:\n  web:\n    image: i\n    volumes:\n    - data:/x\n",
            "f.yml:5: services.web.volumes.0: undefined volume 'data'",
        ),
        (
            "services:\n  web:\n    image: i\n    networks: [n]\n",
            'f.yml:4: services.web.networks.0: undefined network "n"',
        ),
        (
            "services:\n  web:\n    image: i\n    network_mode: host\n    networks: [n]\nnetworks: {n: }\n",
            "f.yml:4: services.web.network_mode: conflicts with networks",
        ),
        (
            "services:\n  web:\n    image: i\n    network_mode: service:db\n",
            "f.yml:4: services.web.network_mode: service:db is not served: want bridge, host or none",
        ),
        (
            "services: {w: {image: i}}\nnetworks:\n  n:\n    ipam: {config: [{gateway: 10.0.0.1}]}\n",
            "f.yml:4: networks.n.ipam.config.0.gateway: unknown key",
        ),
        (
            "services: {w: {image: i}}\nconfigs:\n  c: {file: ./absent}\n",
            "f.yml:3: configs.c.file: absent: No such file",
        ),
        ("services: {w: {image: i}}\nconfigs:\n  c: {}\n", "f.yml:3: configs.c: needs file, content or environment"),
        ("services:\n  web:\n    image: ${NO:?set it}\n", "f.yml:3: required variable NO is missing a value: set it"),
        ("a: 1\nb: 2\na: 3\n", "f.yml:3: duplicate key 'a'"),
        ("a: [1\n", "f.yml:2: expected"),
        ("- a\n", "f.yml:1: top-level object must be a mapping"),
        ("a: !!python/object:os.system x\n", "f.yml:1: could not determine a constructor"),
        ("a: !!set {x}\n", "f.yml:1: tag"),
        ("a: !!int x\n", "f.yml:1: cannot be read as int"),
        ("a: b\n---\nc: d\n", "f.yml:2: but found another document"),
        ("a: \x00\n", "f.yml:1: "),
        ("? [a]\n: b\n", "f.yml:1: a key must be text"),
        ("", "f.yml:1: no services"),
    ],
)
def test_a_refusal_has_file_line_and_path(text: str, refusal: str) -> None:
    with pytest.raises(ManifestError) as caught:
        stack(text)
    assert str(caught.value).startswith(refusal)


def test_what_a_stack_refuses_is_of_the_format_and_not_of_the_model() -> None:
    assert set(REFUSED) <= keys.SERVICE_UNREAD
    assert not keys.SERVICE_UNREAD & keys.SERVICE


def test_a_key_that_a_stack_drops_is_told_with_its_line() -> None:
    found = stack("services:\n  web:\n    image: i\n    privileged: true\n    x-mine: 1\n    shm_size: 1m\n")
    assert found.warnings == [
        "f.yml:4: ignoring unsupported option: services.web.privileged",
        "f.yml:6: ignoring unsupported option: services.web.shm_size",
    ]


def bomb(levels: int, item: str) -> str:
    lines = [f"a0: &a0 {item}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(9, "[x]"),
        "a0: &a0 {k: v}\n"
        + "\n".join(f"a{n}: &a{n} {{k{n}: {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}}}" for n in range(1, 9)),
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "{a: " * 3000 + "}" * 3000,
        "a: ${" + "A:-${" * 5000,
    ],
)
def test_a_hostile_file_is_refused_before_it_costs(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ManifestError):
        parse(text, "f.yml", Path(), {})
    assert time.process_time() - start < 60  # it takes a second, or for ever


def test_a_merge_key_gives_way_to_the_mappings_own_keys() -> None:
    value = parse("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], a: 9}\n", "f", Path(), None).value
    assert value["z"] == {"a": 9, "b": 2, "c": 4}


def test_files_are_merged_and_each_refusal_names_the_file_it_came_from() -> None:
    base = parse(
        "services:\n  w:\n    image: i\n    command: [a, b]\n    environment: [A=1, B=2]\n    ports: ['80:80', '81:81']\n",
        "base.yml",
        Path(),
        None,
    )
    over = parse(
        "services:\n  w:\n    command: [c]\n    environment: {B: 3}\n    ports: ['80:99']\n    dns: {x: 1}\n",
        "over.yml",
        Path(),
        None,
    )
    merged = merge(base, over)
    assert merged.value["services"] == {
        "w": {
            "image": "i",
            "command": ["c"],
            "environment": {"A": "1", "B": 3},
            "ports": ["80:99", "81:81"],
            "dns": {"x": 1},
        }
    }
    assert merged.where(("services", "w", "ports", 0)) == "over.yml:5"
    assert merged.where(("services", "w", "ports", 1)) == "base.yml:6"
    with pytest.raises(ManifestError, match=r"^over\.yml:6: services\.w\.dns: must be text"):
        convert(read(merged, {}), Namespace("s"))


def test_a_redeploy_keeps_the_pinned_image_and_updates_in_place(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "s.yml"
    file.write_text("services:\n  web: {image: busybox:1}\nconfigs:\n  c: {content: new}\n")
    pinned = "busybox:1@sha256:" + "b" * 64
    old = {
        "ID": "svc",
        "Version": {"Index": 7},
        "Spec": {
            "Name": "s_web",
            "Labels": {"com.docker.stack.namespace": "s", "com.docker.stack.image": "busybox:1"},
            "TaskTemplate": {"ContainerSpec": {"Image": pinned}, "ForceUpdate": 3},
        },
    }
    gone = {**old, "ID": "gone", "Spec": {**old["Spec"], "Name": "s_gone"}}  # type: ignore[dict-item]  # a plain object
    engine.routes = NETWORKS | {
        "GET /services": [old, gone],
        "GET /configs": [{"ID": "cid", "Version": {"Index": 2}, "Spec": {"Name": "s_c", "Data": "b2xk", "Labels": {}}}],
        "POST /configs/cid/update": DONE,
        "POST /services/svc/update": {"Warnings": None},
        "DELETE /services/gone": DONE,
    }
    ran = run("stack", "deploy", "--prune", "--resolve-image", "never", "-c", str(file), "s")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Removing service s_gone\nCreating network s_default\nUpdating service s_web (id: svc)\n"
    [spec] = engine.bodies("POST", "/services/svc/update")
    assert spec["TaskTemplate"]["ContainerSpec"]["Image"] == pinned
    assert spec["TaskTemplate"]["ForceUpdate"] == 3
    assert next(asked.query["version"] for asked in engine.asked if asked.path == "/services/svc/update") == "7"


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a: " + b"x" * 5 * 2**20])
def test_a_file_that_is_no_stack_file(run: Run, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.yml").write_bytes(data)
    ran = run("stack", "deploy", "-c", str(tmp_path / "s.yml"), "s")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1


DIGEST = f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    ("resolve", "image", "deployed"),
    [
        ("always", "busybox:1", f"busybox:1@{DIGEST}"),
        ("changed", "busybox:1", "busybox:1@old"),
        ("changed", "busybox:2", f"busybox:2@{DIGEST}"),
        ("never", "busybox:2", "busybox:2"),
    ],
)
def test_an_image_is_resolved_always_where_it_changed_or_never(
    engine: FakeEngine, run: Run, tmp_path: Path, resolve: str, image: str, deployed: str
) -> None:
    old = {
        "ID": "svc",
        "Version": {"Index": 7},
        "Spec": {
            "Name": "s_web",
            "Labels": {"com.docker.stack.namespace": "s", "com.docker.stack.image": "busybox:1"},
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:1@old"}},
        },
    }
    engine.routes = NETWORKS | {
        "GET /services": [old],
        "GET /distribution/.+/json": {"Descriptor": {"mediaType": "m", "digest": DIGEST, "size": 1}, "Platforms": []},
        "POST /services/svc/update": {"Warnings": None},
    }
    (tmp_path / "s.yml").write_text(f"services:\n  web: {{image: '{image}'}}\n")
    ran = run("stack", "deploy", "--resolve-image", resolve, "-c", str(tmp_path / "s.yml"), "s")
    assert (ran.code, ran.err) == (0, "")
    [spec] = engine.bodies("POST", "/services/svc/update")
    assert spec["TaskTemplate"]["ContainerSpec"]["Image"] == deployed


@pytest.mark.parametrize("with_auth", [True, False])
def test_credentials_go_with_a_service_when_asked_for(
    engine: FakeEngine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_auth: bool
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.example": {"auth": auth}}}))
    (tmp_path / "s.yml").write_text("services:\n  web: {image: registry.example/app:1}\n")
    engine.routes = NETWORKS | {"GET /services": [], "POST /services/create": {"ID": "svc"}}
    flags = ["--with-registry-auth"] if with_auth else []
    ran = run("stack", "deploy", *flags, "--resolve-image", "never", "-c", str(tmp_path / "s.yml"), "s")
    assert (ran.code, ran.err) == (0, "")
    [created] = [asked for asked in engine.asked if asked.path == "/services/create"]
    sent = created.headers.get("X-Registry-Auth")
    decoded = json.loads(base64.urlsafe_b64decode(sent)) if sent else None
    expected = {"username": "me", "password": "secret", "serveraddress": "registry.example"}
    assert decoded == (expected if with_auth else None)


def test_options_of_a_tmpfs_are_honoured_or_refused() -> None:
    found = web("tmpfs: ['/a', '/b:size=64m,mode=1770,ro']")
    assert found["Mounts"] == [
        {"Type": "tmpfs", "Target": "/a"},
        {"Type": "tmpfs", "Target": "/b", "ReadOnly": True, "TmpfsOptions": {"SizeBytes": 64 << 20, "Mode": 0o1770}},
    ]
    with pytest.raises(ManifestError, match="option 'uid=1000': want size"):
        web("tmpfs: ['/b:uid=1000']")


@pytest.mark.parametrize("line", ["restart: sometimes", "restart: always:3", "restart: on-failure:x"])
def test_a_restart_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ManifestError, match=r"f\.yml:4: services\.web\.restart: "):
        web(line)


def test_a_file_mode_has_four_digits() -> None:
    with pytest.raises(ValueError, match="invalid mode specified"):
        values.file_mode("10777")


def deployed(engine: FakeEngine, run: Run, tmp_path: Path, lines: str) -> tuple[dict[str, object], str]:
    """The container spec of a service with such lines, and what was said on stderr."""
    file = tmp_path / "stack.yml"
    file.write_text(f"services:\n  web:\n    image: i\n    {lines}\nconfigs: {{c: {{content: x}}}}\n")
    engine.routes = NETWORKS | {
        "GET /(services|configs)": [],
        "POST /configs/create": {"ID": "c"},
        "POST /services/create": {"ID": "s"},
    }
    ran = run("stack", "deploy", "--resolve-image", "never", "-c", str(file), "s")
    specs = engine.bodies("POST", "/services/create")
    return (specs[0] if specs else {}), ran.err.replace(f"{file}", "f.yml")


@pytest.mark.parametrize(
    ("recursive", "options"),
    [
        ("enabled", None),
        ("disabled", {"NonRecursive": True}),
        ("writable", {"ReadOnlyNonRecursive": True}),
        ("readonly, propagation: rprivate", {"ReadOnlyForceRecursive": True, "Propagation": "rprivate"}),
    ],
)
def test_mounts_below_a_bind_mount(
    engine: FakeEngine, run: Run, tmp_path: Path, recursive: str, options: dict[str, object] | None
) -> None:
    mount = f"{{type: bind, source: /s, target: /t, read_only: true, bind: {{recursive: {recursive}}}}}"
    spec, err = deployed(engine, run, tmp_path, f"volumes: [{mount}]")
    assert err == ""
    assert spec["TaskTemplate"]["ContainerSpec"]["Mounts"][0].get("BindOptions") == options  # type: ignore[index]  # JSON


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("recursive: sometimes", "want one of enabled, disabled, writable, readonly, got 'sometimes'"),
        ("recursive: writable", "option 'bind-recursive=writable' requires 'readonly'"),
        ("recursive: readonly", "option 'bind-recursive=readonly' requires 'readonly'"),
    ],
)
def test_mounts_below_a_bind_mount_are_refused(
    engine: FakeEngine, run: Run, tmp_path: Path, line: str, told: str
) -> None:
    spec, err = deployed(engine, run, tmp_path, f"volumes: [{{type: bind, source: /s, target: /t, bind: {{{line}}}}}]")
    assert spec == {}
    assert f"f.yml:4: services.web.volumes.0.bind.recursive: {told}" in err


@pytest.mark.parametrize(
    ("port", "given"),
    [
        ("127.0.0.1:80:81", "127.0.0.1:80:81/tcp"),
        ("[::1]:80:81/udp", "::1:80:81/udp"),
        ("10.0.0.1::81", "10.0.0.1::81/tcp"),
    ],
)
def test_the_address_of_a_port_is_dropped_with_a_warning(
    engine: FakeEngine, run: Run, tmp_path: Path, port: str, given: str
) -> None:
    spec, err = deployed(engine, run, tmp_path, f"ports: ['{port}']")
    assert spec["EndpointSpec"]["Ports"][0]["TargetPort"] == 81  # type: ignore[index]  # JSON
    assert err == f"f.yml:4: ignoring IP-address ({given}) service will listen on '0.0.0.0'\n"


@pytest.mark.parametrize(
    ("mode", "warning"),
    [
        (
            "400",
            "f.yml:4: services.web.configs.0.mode: 400 is decimal and gives mode 0620; write 0400 if that is meant\n",
        ),
        ("0644", ""),
        ("'644'", ""),
        ("288", ""),
    ],
)
def test_a_decimal_mode_is_warned_of(engine: FakeEngine, run: Run, tmp_path: Path, mode: str, warning: str) -> None:
    _, err = deployed(engine, run, tmp_path, f"configs: [{{source: c, mode: {mode}}}]")
    assert err == warning
