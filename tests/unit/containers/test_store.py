"""Records on disk: what the next daemon reads, and what it refuses to guess."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runtime.containers.record import Record, RunState
from runtime.containers.states import Status
from runtime.containers.store import ContainerStore
from runtime.networks.driver import Endpoint
from runtime.networks.rules import PublishedPort
from runtime.types import ContainerConfig, HostConfig

ID = "ab" * 32


async def reopened(root: Path, state: bytes) -> RunState:
    record = Record(
        ID=ID,
        Name="web",
        CreatedNs=1,
        Created="",
        ImageID="",
        Config=ContainerConfig(),
        HostConfig=HostConfig(),
        Endpoints={},
        Mounts=[],
    )
    (root / ID).mkdir()
    (root / ID / "container.json").write_bytes(msgspec.json.encode(record))
    (root / ID / "state.json").write_bytes(state)
    store = ContainerStore(root)
    await store.open()
    return store.get("web").state


async def test_the_endpoints_of_a_run_are_read_again(tmp_path: Path) -> None:
    port = PublishedPort("tcp", "0.0.0.0", 8080, "10.0.0.2", 80)
    endpoints = {
        "front": Endpoint(NetworkID="n1", ID="e1", Link="veth0000001", Addresses=["10.0.0.2/24"], Ports=[port]),
        "back": Endpoint(NetworkID="n2", ID="e2", Addresses=["10.1.0.2/24", "fd00::2/64"]),
    }
    state = await reopened(tmp_path, msgspec.json.encode(RunState(Status=Status.RUNNING, Endpoints=endpoints)))
    assert state.Endpoints == endpoints
    assert state.ports == [port]


async def test_a_state_of_another_version_is_not_half_understood(tmp_path: Path) -> None:
    state = await reopened(
        tmp_path, b'{"Status":"running","Pid":7,"Endpoint":{"IPAddress":"172.17.0.2"},"Link":"veth1"}'
    )
    assert (state.Status, state.ExitCode, state.Error) == ("exited", 255, "the record of its last run was lost")


async def test_what_a_kill_left_of_a_write_is_swept_at_the_next_start(tmp_path: Path) -> None:
    left, kept = tmp_path / ID / ".state.json.4711.tmp", tmp_path / ID / "0-json.log"
    (tmp_path / ID).mkdir()
    left.write_bytes(b"half")
    kept.touch()
    (tmp_path / ID / "container.json").touch()  # cannot be read: left alone, but for that
    store = ContainerStore(tmp_path)
    await store.open()
    assert not left.exists()
    assert kept.exists()
