"""A daemon that is not there, refuses, or is none: one line and an exit status. And log streams, and run."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.client import UnreachableError
from cli.logs import frames
from tests.unit.cli import samples
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import FakeEngine, Raw, frame, logged, refused
from tests.unit.cli.sample_cluster import fill_run


def test_no_daemon(run: Run, tmp_path: Path) -> None:
    ran = run("node", "ls", host=f"unix://{tmp_path}/none.sock")
    assert (ran.code, ran.out) == (1, "")
    assert "is swarmd running?" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("host", ["http://x", "nonsense", "unix://", "tcp://", "tcp://h:99999", "tcp://[::1"])
def test_a_host_that_is_none(run: Run, host: str) -> None:
    ran = run("node", "ls", host=host)
    assert ran.code == 1
    assert ran.err.startswith("invalid host")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[",
        b"HTTP/1.1 200 OK\r\n\r\n{not json",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
    ],
)
def test_a_peer_that_is_no_engine(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        ran = run("node", "ls", host=f"unix://{tmp_path}/s")
        thread.join()
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1


def test_a_refusal_is_in_the_daemons_words(engine: FakeEngine, run: Run) -> None:
    engine.routes = {"GET /nodes": refused(503, "This node is not a swarm manager.")}
    ran = run("node", "ls")
    assert (ran.code, ran.err) == (1, "Error response from daemon: This node is not a swarm manager.\n")
    engine.routes = {"GET /nodes": Raw(b"plain text", 500, "text/plain")}
    assert run("node", "ls").err == "Error response from daemon: plain text\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((["bogus"], 1), (["node", "bogus"], 1), (["node", "ls", "--bogus"], 125), (["node", "rm"], 1)),
        *((["node", "update", "--role", "king", "n"], 125), ([], 0), (["node"], 0), (["node", "ls", "--help"], 0)),
        *((["service", "create", "--limit-memory", "x", "i"], 125), (["service", "create", "-d=maybe", "i"], 125)),
        *((["service", "create", "--publish", "0:0", "i"], 125), (["service", "create"], 1)),
    ],
)
def test_exit_statuses(run: Run, words: list[str], code: int) -> None:
    ran = run(*words)
    assert ran.code == code, ran.err
    assert (ran.out != "") is (code == 0)


def test_what_follows_the_image_belongs_to_the_command(engine: FakeEngine, run: Run) -> None:
    engine.routes = {"POST /services/create": {"ID": "i"}}
    ran = run(
        "service",
        "create",
        "--detach=true",
        "--no-resolve-image",
        "--tty=false",
        "--name",
        "s",
        "busybox",
        "ls",
        "-l",
        "--detach=false",
    )
    assert ran.code == 0, ran.err
    [spec] = engine.bodies("POST", "/services/create")
    assert spec["TaskTemplate"]["ContainerSpec"]["Args"] == ["ls", "-l", "--detach=false"]


def test_frames() -> None:
    whole = frame(1, b"a\n") + frame(2, b"b\n") + frame(1, b"")
    assert list(frames(io.BytesIO(whole))) == [(1, b"a\n"), (2, b"b\n"), (1, b"")]
    assert list(frames(io.BytesIO(whole[:9]))) == [(1, b"a")]
    for wrong in (b"HTTP/1.1 or text", frame(3, b"no such file"), b"\x01\0\0\0\xff\xff\xff\xff", b"\x01\0"):
        with pytest.raises(UnreachableError):
            list(frames(io.BytesIO(wrong)))


def test_service_logs_name_task_and_node(engine: FakeEngine, run: Run) -> None:
    node, service = samples.node(1, "host-1"), samples.service(1, "web", replicas=10)
    task = samples.task("t1", service, 2, node)
    attributes = f"com.docker.swarm.node.id={node['ID']},com.docker.swarm.service.id={service['ID']},com.docker.swarm.task.id={task['ID']},k=v"
    engine.routes = {
        "GET /services/[^/]+": service,
        "GET /tasks/[^/]+": task,
        "GET /nodes/[^/]+": node,
        "GET /services/web/logs": logged(frame(1, f"{attributes} hello there\n".encode()), frame(2, b"bare\n")),
    }
    ran = run("service", "logs", "web")
    assert (ran.out, ran.err) == ("web.2.t1zzzzzzzzzz@host-1     | hello there\n", "bare\n")
    assert run("service", "logs", "--no-task-ids", "--details", "web").out == "web.2@host-1     | k=v hello there\n"


def test_run_ends_as_the_container_does(engine: FakeEngine, run: Run) -> None:
    fill_run(engine)
    ran = run(
        "run",
        "--rm",
        "--name",
        "n",
        "-e",
        "A=1",
        "-v",
        "/a:/b:ro",
        "-p",
        "127.0.0.1:80:8080",
        "-m",
        "64m",
        "busybox",
        "sh",
        "-c",
        "exit 3",
    )
    assert (ran.out, ran.err, ran.code) == ("out\n", "err\n", 3)
    [body] = engine.bodies("POST", "/containers/create")
    assert body["Cmd"] == ["sh", "-c", "exit 3"]
    assert body["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "80"}]}
    assert (body["HostConfig"]["Memory"], body["HostConfig"]["AutoRemove"]) == (2**26, True)
    assert run("run", "-d", "busybox").out == "c" * 64 + "\n"
    engine.routes["POST /containers/c+/start"] = refused(400, 'exec: "x": executable file not found in $PATH')
    assert run("run", "-d", "busybox", "x").code == 127


CHECK = """
import sys
from cli import main
sys.argv = ["swarm", *sys.argv[1:]]
try:
    main.main()
except SystemExit:
    pass
heavy = {"grpc", "aiohttp", "pyroute2", "structlog", "asyncio", "jsonschema", "yaml", "rich"} & set(sys.modules)
sys.stderr.write(f"HEAVY {sorted(heavy)} of {len(sys.modules)}")
"""


def routes() -> dict[str, Any]:
    node = samples.node(1, "host-1", role="manager", leader=True)
    return {"GET /nodes": [node], "GET /info": samples.info(node)}


@pytest.mark.parametrize("words", [["--help"], ["node", "ls"]])
def test_a_command_imports_nothing_heavy(engine: FakeEngine, words: list[str]) -> None:
    engine.routes = routes()
    done = subprocess.run(
        [sys.executable, "-c", CHECK, "-H", engine.host, *words], capture_output=True, text=True, timeout=60
    )
    assert done.stdout
    heavy, _, count = done.stderr.partition(" of ")
    assert heavy == "HEAVY []"
    assert int(count) < 300  # about 160: a command starts in a tenth of a second
