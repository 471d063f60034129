"""One stack file deployed by ``docker`` and by ``swarm``: the same objects arrive at the daemon."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import DONE, FakeEngine, missing, refused
from tests.unit.cli.test_docker_parity import docker

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command to compare with")

FULL = """
version: "3.13"
x-common: &common
  image: busybox:1
  init: true
services:
  web:
    <<: *common
    command: sh -c "echo 'a b' $$HOME"
    entrypoint: ["/entry", "x"]
    environment:
      PLAIN: text
      NUMBER: 17
      FLAG: "true"
      FROM: ${SET}
      DEFAULT: ${UNSET:-fallback}
      OUTER:
    env_file: web.env
    labels: {a: b}
    hostname: h
    user: "1000"
    working_dir: /srv
    tty: true
    stdin_open: true
    read_only: true
    stop_grace_period: 1m30s
    stop_signal: SIGINT
    cap_add: [CAP_NET_ADMIN]
    cap_drop: [CAP_MKNOD]
    dns: 10.0.0.53
    dns_search: [a.example, b.example]
    extra_hosts: ["db:10.0.0.5"]
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nproc: 100, nofile: {soft: 10, hard: 20}}
    healthcheck:
      test: ["CMD", "true"]
      interval: 10s
      timeout: 2s
      retries: 4
      start_period: 1s
    logging: {driver: json-file, options: {max-size: 1m}}
    volumes:
      - data:/data
      - data:/more:ro,nocopy
      - ./here:/there:ro
      - /abs:/abs
      - /anonymous
      - {type: tmpfs, target: /scratch, tmpfs: {size: 1048576}}
      - {type: bind, source: /src, target: /dst, bind: {propagation: rslave}}
      - shared:/shared
      - nfs:/nfs
    ports:
      - "8080:80"
      - "9000-9001:90-91/udp"
      - {target: 443, published: 8443, mode: host}
    configs:
      - conf
      - {source: other, target: /etc/conf, uid: "10", gid: "20", mode: 0440}
    secrets: [pass, outside]
    networks:
      front: {aliases: [www, shop]}
      back:
      outer: {driver_opts: {x: y}}
    deploy:
      mode: replicated
      replicas: 3
      endpoint_mode: dnsrr
      labels: [tier=front]
      update_config: {parallelism: 2, delay: 5s, failure_action: rollback, monitor: 7s, max_failure_ratio: 0.3, order: start-first}
      rollback_config: {parallelism: 0}
      resources:
        limits: {cpus: "0.5", memory: 64M, pids: 10}
        reservations:
          cpus: "0.25"
          memory: 32M
          generic_resources: [{discrete_resource_spec: {kind: gpu, value: 2}}]
      restart_policy: {condition: on-failure, delay: 1s, max_attempts: 3, window: 10s}
      placement:
        constraints: [node.role==worker]
        preferences: [{spread: node.labels.zone}]
        max_replicas_per_node: 2
  every:
    image: alpine@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    command: ["sleep", "9d"]
    healthcheck: {disable: true}
    deploy: {mode: global}
configs:
  conf: {file: ./conf.txt, labels: {x: y}}
  other: {file: ./pass.txt}
secrets:
  pass: {file: ./pass.txt, template_driver: golang}
  outside: {external: true}
networks:
  front:
    driver: overlay
    driver_opts: {com.docker.network.driver.mtu: 1400}
    attachable: true
    ipam: {driver: default, config: [{subnet: 10.77.0.0/24}]}
    labels: {n: o}
  back: {internal: true, name: behind}
  outer: {external: true, name: outer-net}
  nobodys: {}
volumes:
  data: {}
  shared: {external: true}
  nfs: {driver: nfs, driver_opts: {share: "a:/b"}, labels: {l: m}}
"""

OVER = """
version: "3.13"
services:
  web:
    command: sleep 1
    environment: [PLAIN=over, ADDED=1]
    ports: ["8080:81"]
    volumes: ["/other:/data"]
    networks: {back: , front: {aliases: [other]}}
    deploy: {replicas: 5, labels: {tier: back}}
  third: {image: c, networks: [added, front]}
networks: {front: , added: {}}
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SET", "1.10")
    monkeypatch.setenv("OUTER", "outer")
    monkeypatch.delenv("UNSET", raising=False)
    for name, text in (
        *(("web.env", "# comment\nFILE=1\nPLAIN=lost\n"), ("conf.txt", "conf"), ("pass.txt", "pass")),
        *(("full.yml", FULL), ("over.yml", OVER)),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def routes(engine: FakeEngine) -> None:
    outside = {"ID": "outsideid", "Version": {"Index": 1}, "Spec": {"Name": "outside", "Labels": {}}}
    made = {
        "secret": [
            outside,
            {"ID": "shop_passid", "Version": {"Index": 1}, "Spec": {"Name": "shop_pass", "Labels": {}}},
        ],
        "config": [
            {"ID": "shop_confid", "Version": {"Index": 1}, "Spec": {"Name": "shop_conf", "Labels": {}}},
            {"ID": "shop_otherid", "Version": {"Index": 1}, "Spec": {"Name": "shop_other", "Labels": {}}},
        ],
    }

    def listed(kind: str) -> Any:
        # Docker asks for each by name before it creates it and lists them for the references afterwards.
        def answer(asked: Any) -> Any:
            created = engine.bodies("POST", f"/{kind}s/create")
            return made[kind] if created else [entry for entry in made[kind] if entry is outside]

        return answer

    engine.routes = {
        "GET /info": {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "n"}},
        "GET /networks": [],
        "GET /networks/outer-net": {"Name": "outer-net", "Id": "outerid", "Scope": "swarm"},
        "GET /networks/of-this-host": {"Name": "of-this-host", "Id": "hostid", "Scope": "local"},
        "GET /networks/.+": missing("not found"),
        "POST /networks/create": {"Id": "net"},
        "GET /secrets": listed("secret"),
        "GET /configs": listed("config"),
        "GET /secrets/outside": outside,
        "GET /(secrets|configs)/(.+)": lambda asked: missing("not found"),
        "POST /(secrets|configs)/create": lambda asked: {"ID": f"{asked.body['Name']}id"},
        "GET /services": [],
        "POST /services/create": lambda asked: {"ID": asked.body["Name"]},
        "GET /distribution/busybox:1/json": {
            "Descriptor": {"mediaType": "m", "digest": f"sha256:{'b' * 64}", "size": 1},
            "Platforms": [{"architecture": "amd64", "os": "linux"}],
        },
    }


def filled(value: Any, key: str = "") -> Any:
    """Without what is empty or the default of the type: the daemon takes it the same way."""
    if isinstance(value, dict):
        made = {name: filled(item, name) for name, item in value.items()}
        return {name: item for name, item in made.items() if item not in (None, "", [], {}, 0, False)}
    if not isinstance(value, list):
        return None if (key, value) in (("Replicas", 1), ("Protocol", "tcp")) else value
    items = [filled(item) for item in value]
    # Merging leaves Docker's mounts in the order of their targets.
    return sorted(items, key=lambda item: str(item["Target"])) if key == "Mounts" else items


@pytest.mark.parametrize("files", [("full.yml",), ("full.yml", "over.yml")])
def test_deploys_what_docker_deploys(engine: FakeEngine, run: Run, directory: Path, files: tuple[str, ...]) -> None:
    routes(engine)
    words = [word for name in files for word in ("-c", str(directory / name))]
    _, err, code = docker(engine, "stack", "deploy", *words, "shop")
    assert code == 0, err
    theirs = created(engine)
    engine.asked.clear()
    ran = run("stack", "deploy", *words, "shop")
    assert ran.code == 0, ran.err
    ours = created(engine)
    found = "\n".join(differences(ours, theirs))
    assert not found, found


@pytest.mark.parametrize(
    ("refused_path", "told"),
    [
        ("/secrets/s1/update", "failed to update secret shop_key: "),
        ("/configs/create", "failed to create config shop_conf: "),
        ("/services/create", "failed to create service shop_web: "),
        ("/networks/create", "failed to create network shop_default: "),
    ],
)
def test_a_refusal_names_what_was_refused(
    engine: FakeEngine, run: Run, tmp_path: Path, refused_path: str, told: str
) -> None:
    routes(engine)
    secret = {"ID": "s1", "Version": {"Index": 1}, "Spec": {"Name": "shop_key", "Labels": {}}}
    own = {
        f"POST {refused_path}": refused(400, "not so"),
        "GET /secrets": [secret],
        "GET /secrets/.+": secret,
        "POST /secrets/.+/update": DONE,
    }
    engine.routes = own | engine.routes | own  # own ones first, and with their own answers
    (tmp_path / "text").write_text("x")
    file = tmp_path / "stack.yml"
    file.write_text(
        "version: '3.8'\nservices: {web: {image: 'busybox', secrets: [key], configs: [conf]}}\n"
        "secrets: {key: {file: ./text}}\nconfigs: {conf: {file: ./text}}\n"
    )
    words = ("stack", "deploy", "--resolve-image", "never", "-c", str(file), "shop")
    _, theirs, code = docker(engine, *words)
    assert code == 1
    engine.asked.clear()
    ran = run(*words)
    assert ran.code == 1
    assert told in theirs
    assert ran.err.splitlines()[-1] == theirs.splitlines()[-1]


@pytest.mark.parametrize(
    ("networks", "services", "code"),
    [
        ("{default: {driver: overlay, attachable: true}}", "{a: {image: i}, b: {image: i, networks: [default]}}", 0),
        ("{default: {name: outer-net, external: true}}", "{a: {image: i}}", 0),
        ("{default: {external: {name: outer-net}}}", "{a: {image: i}}", 0),
        ("{outer-net: {external: true, driver: overlay}}", "{a: {image: i, networks: [outer-net]}}", 0),
        ("{hosts: {external: true, name: host}}", "{a: {image: i, networks: {hosts: {}}}}", 0),
        ("{n: {driver: bridge}}", "{a: {image: i, networks: {n: {ipv4_address: 10.0.0.9, aliases: [x]}}}}", 0),
        ("{n: {external: true, name: gone}}", "{a: {image: i, networks: [n]}}", 1),
        ("{of-this-host: {external: true}}", "{a: {image: i, networks: [of-this-host]}}", 1),
        ("{n: {external: true, name: gone}}", "{a: {image: i}}", 0),
    ],
)
def test_networks_are_dockers(
    engine: FakeEngine, run: Run, tmp_path: Path, networks: str, services: str, code: int
) -> None:
    routes(engine)
    file = tmp_path / "stack.yml"
    file.write_text(f"version: '3.8'\nservices: {services}\nnetworks: {networks}\n")
    words = ("stack", "deploy", "--resolve-image", "never", "-c", str(file), "shop")
    _, err, their_code = docker(engine, *words)
    theirs = created(engine)
    engine.asked.clear()
    ran = run(*words)
    assert (ran.code, their_code) == (code, code), (ran.err, err)
    found = "\n".join(differences(created(engine), theirs))
    assert not found, found
    assert code == 0 or ran.err.splitlines()[-1] == err.splitlines()[-1]


def test_a_network_of_the_stack_is_not_made_again(engine: FakeEngine, run: Run, tmp_path: Path) -> None:
    routes(engine)
    engine.routes["GET /networks"] = [{"Name": "shop_default", "Id": "n", "Scope": "swarm"}]
    file = tmp_path / "stack.yml"
    file.write_text("services: {a: {image: i}}\n")
    ran = run("stack", "deploy", "--resolve-image", "never", "-c", str(file), "shop")
    assert (ran.code, ran.out) == (0, "Creating service shop_a\n")
    assert not engine.bodies("POST", "/networks/create")


def stack_of_three(engine: FakeEngine) -> None:
    """A service, a secret and two configs of a stack, all of which can be removed."""

    def entry(identifier: str) -> dict[str, Any]:
        labels = {"com.docker.stack.namespace": "shop"}
        return {"ID": identifier, "Version": {"Index": 1}, "Spec": {"Name": f"shop_{identifier}", "Labels": labels}}

    def of_shop(*entries: dict[str, Any]) -> Any:
        return lambda asked: list(entries) if "namespace=shop" in asked.query["filters"] else []

    engine.routes = {
        "GET /services": of_shop(entry("web") | {"Spec": entry("web")["Spec"] | {"Mode": {"Global": {}}}}),
        "GET /secrets": of_shop(entry("key")),
        "GET /configs": of_shop(entry("conf-a"), entry("conf-b")),
        "GET /networks": of_shop(*({"Name": f"shop_{name}", "Id": f"{name}id"} for name in ("back", "default"))),
        "GET /tasks": [],
        "GET /info": {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "n"}},
        "DELETE /.+": DONE,
    }


@pytest.mark.parametrize(
    ("refusal", "names", "code"),
    [
        ("", ["shop"], 0),
        ("", ["nothing", "shop"], 0),
        ("/secrets/key", ["shop", "nothing"], 1),
        ("/networks/backid", ["shop"], 1),
    ],
)
def test_removes_what_docker_removes(engine: FakeEngine, run: Run, refusal: str, names: list[str], code: int) -> None:
    stack_of_three(engine)
    engine.routes = {f"DELETE {refusal}": refused(400, "in use")} | engine.routes

    def removals() -> list[str]:
        found = [asked.path for asked in engine.asked if asked.method == "DELETE"]
        engine.asked.clear()
        return found

    theirs = docker(engine, "stack", "rm", *names)
    removed_by_docker = removals()
    ours = run("stack", "rm", *names)
    assert removals() == removed_by_docker != []
    assert (ours.out, ours.code) == (theirs[0], theirs[2])
    assert ours.code == code
    # Docker forgets the end of a line behind what could not be removed.
    assert ours.err.replace("\n", "") == theirs[1].replace("\n", "")


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Each place where two decoded objects are not the same."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path}: ours {ours!r}, Docker's {theirs!r}"


def created(engine: FakeEngine) -> dict[str, Any]:
    return {
        asked.path + " " + asked.body["Name"]: filled(asked.body)
        for asked in engine.asked
        if asked.method == "POST" and asked.path.endswith("/create")
    }


@pytest.mark.parametrize(
    "lines",
    [
        "environment: {QUX: , OUTER: , A: b}",
        "environment: {QUX: ~}",
        "environment: [QUX, OUTER, A=b]",
        "environment: {OUTER: '', QUX: ''}",
        "command: \"sh -c 'a b' c#d # not this\"",
        "labels: {a: 1.0, b: 1.50, c: 0x10}",
        "restart: always",
        "restart: unless-stopped",
        "restart: on-failure",
        "restart: on-failure:3",
        'restart: "no"',
        "{restart: on-failure:3, deploy: {restart_policy: {condition: any}}}",
        "volumes: ['/src:/dst:rslave', '/src:/two:ro,rshared']",
        "deploy: {rollback_config: {failure_action: rollback}}",
        "ports: ['8000-8010:80']",
        "ports: ['8000-8002:80-82/udp']",
        "cap_add: [SYS_NICE, cap_net_admin]",
        "{cap_add: [ALL], cap_drop: [SYS_NICE, MKNOD]}",
        "{cap_add: [SYS_NICE], cap_drop: [cap_sys_nice, MKNOD]}",
    ],
)
def test_odd_lines_deploy_what_docker_deploys(
    engine: FakeEngine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    monkeypatch.setenv("OUTER", "set")
    routes(engine)
    body = lines[1:-1] if lines.startswith("{") else lines
    file = tmp_path / "stack.yml"
    file.write_text(f"version: '3.13'\nservices: {{web: {{image: 'busybox:1', {body}}}}}\n")
    words = ("stack", "deploy", "--resolve-image", "never", "-c", str(file), "shop")
    _, err, code = docker(engine, *words)
    assert code == 0, err
    theirs = created(engine)
    engine.asked.clear()
    ran = run(*words)
    assert ran.code == 0, ran.err
    found = "\n".join(differences(created(engine), theirs))
    assert not found, found


CONFIG = [
    "environment: {OUTER: '', B: , C: 1.10, E: 0x10, A_B: 1, AB: 2, A10: 5, A9: 6}",
    "ports: ['80', '8000-8002:80-82/udp', 90, '127.0.0.1:1:2', {target: 80}]",
    "healthcheck: {test: [CMD, x], interval: 1500ms, start_period: 1h, retries: 3}",
    "{healthcheck: {disable: true}, init: false, restart: 'no', stop_grace_period: 90s}",
    "{ulimits: {nofile: 10, nproc: {soft: 1, hard: 2}}, tmpfs: /x, dns: 1.1.1.1, depends_on: [a], build: .}",
    "extra_hosts: ['a:1.1.1.1', 'b=[::1]']",
    'command: "a \\"b c\\" \'d\' e#f # no"',
    "deploy: {update_config: {max_failure_ratio: 1, delay: 0s, parallelism: 0}, rollback_config: {}}",
    "deploy: {resources: {limits: {cpus: '0.50', memory: 1.5g}, reservations: {memory: '0'}}}",
    "deploy: {restart_policy: {condition: on-failure, delay: 0s, max_attempts: 0, window: 1m}, replicas: 0}",
    "configs: [{source: c, mode: 0440, uid: '1'}, gone]",
    "volumes: ['/a:/b:ro,rslave', '~/x:/y', '..:/z', 'vol:/n:nocopy', /anon, {type: tmpfs, target: /t, tmpfs: {size: 5}}]",
    "labels: {a: , b: 1, d: 1.0, e: 'true', f: 'a: b'}",
    "networks: [b, a]",
    "networks: {b: {aliases: [z, y], ipv4_address: 10.0.0.5}, a: , c: {}}",
    "{x-foo: {b: 2, a: [1, 0440]}, logging: {driver: x, options: {max-size: 1m, n: 3}}}",
]


def of_docker(engine: FakeEngine, directory: Path, *words: str) -> str:
    """What Docker's command prints; paths of environment files, which it leaves, as ours."""
    out, err, code = docker(engine, "stack", "config", *words)
    assert code == 0, err
    return out.replace("- web.env\n", f"- {directory}/web.env\n")


@pytest.mark.parametrize("files", [("full.yml",), ("full.yml", "over.yml"), ("--skip-interpolation", "full.yml")])
def test_config_prints_what_docker_prints(
    engine: FakeEngine, run: Run, directory: Path, files: tuple[str, ...]
) -> None:
    words = [word for name in files for word in (["-c", str(directory / name)] if name.endswith("yml") else [name])]
    ran = run("stack", "config", *words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.rstrip() == of_docker(engine, directory, *words).rstrip()


def test_config_prints_odd_lines_as_docker(
    engine: FakeEngine, run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTER", "set")
    services = "".join(
        f"  s{index}: {line}\n" if line.startswith("{") else f"  s{index}:\n    {line}\n"
        for index, line in enumerate(CONFIG)
    )
    file = directory / "odd.yml"
    file.write_text(
        f"version: '3.8'\nservices:\n{services}"
        "volumes: {a: , b: {external: true}, c: {driver: d, driver_opts: {x: 1}, labels: [q]}}\n"
        "configs: {c: {file: ./x, labels: {q: r}, template_driver: golang}}\n"
        "networks: {a: , b: {external: true}, c: {ipam: {config: [{subnet: 10.0.0.0/24}]}, driver_opts: {b: 1, a: 2}},"
        " d: {ipam: {driver: x}, internal: true, attachable: true, labels: [q=r], name: n}}\nx-y: {b: 1, a: 2}\n"
    )
    ran = run("stack", "config", "-c", str(file))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.rstrip() == of_docker(engine, directory, "-c", str(file)).rstrip()


@pytest.mark.parametrize(
    "words",
    [
        ("--cap-add", "SYS_NICE", "--cap-drop", "mknod"),
        ("--cap-add", "sys_nice", "--cap-drop", "CAP_SYS_NICE"),
        ("--cap-add", "ALL", "--cap-add", "SYS_NICE", "--cap-drop", "MKNOD"),
    ],
)
def test_capabilities_of_a_new_service_are_dockers(engine: FakeEngine, run: Run, words: tuple[str, ...]) -> None:
    routes(engine)
    create = ("service", "create", "-d", "--no-resolve-image", "--name", "w", *words, "busybox:1")
    _, err, code = docker(engine, *create)
    assert code == 0, err
    [theirs] = engine.bodies("POST", "/services/create")
    engine.asked.clear()
    ran = run(*create)
    assert ran.code == 0, ran.err
    [ours] = engine.bodies("POST", "/services/create")
    for key in ("CapabilityAdd", "CapabilityDrop"):
        assert ours["TaskTemplate"]["ContainerSpec"].get(key) == theirs["TaskTemplate"]["ContainerSpec"].get(key)
