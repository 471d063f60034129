"""Legacy links: what they put into the environment and /etc/hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.containers import files, links
from runtime.containers.container import Container
from runtime.containers.links import Linked
from runtime.containers.record import Record, RunState
from runtime.containers.states import Status
from runtime.containers.store import ContainerStore
from runtime.errors import ConflictError, HostError, InvalidParameterError
from runtime.networks.driver import Endpoint
from runtime.types import ContainerConfig, EndpointSettings, HostConfig


async def put(store: ContainerStore, name: str, mode: str = "bridge", **linked: str) -> Container:
    record = Record(
        ID=store.new_id(),
        Name=store.claim_name(name, name),
        CreatedNs=0,
        Created="",
        ImageID="",
        Config=ContainerConfig(
            Hostname=f"{name}-host", Env=["MODE=x", "PATH=/bin", "ALONE"], ExposedPorts={"80/tcp": {}}
        ),
        HostConfig=HostConfig(NetworkMode=mode),
        Endpoints={"bridge": EndpointSettings()},
        Mounts=[],
        Links=linked,
    )
    store._names[name] = record.ID
    return await store.add(record)


def run(container: Container, address: str) -> None:
    container.state = RunState(
        Status=Status.RUNNING, Endpoints={"bridge": Endpoint(NetworkID="n", ID="e", Addresses=[address])}
    )


@pytest.fixture
async def store(tmp_path: Path) -> ContainerStore:
    made = ContainerStore(tmp_path / "containers")
    await made.open()
    return made


@pytest.mark.parametrize(
    ("text", "found"),
    [("db", ("db", "db")), ("db:data", ("db", "data")), ("/db:/web/data", ("db", "data"))],
)
def test_the_forms_of_a_link(text: str, found: tuple[str, str]) -> None:
    assert links.parse(text) == found


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty string specified"), ("a:b:c", "bad format for links: a:b:c")]
)
def test_what_is_no_link(text: str, message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        links.parse(text)


async def test_links_are_settled_by_id(store: ContainerStore) -> None:
    db = await put(store, "db")
    await put(store, "beside", mode=f"container:{db.id}")
    await put(store, "on-host", mode="host")
    assert links.settle(["beside:data", "db"], store.get) == {"data": db.id, "db": db.id}
    with pytest.raises(InvalidParameterError, match="could not get container for nobody: No such container: nobody"):
        links.settle(["nobody"], store.get)
    with pytest.raises(InvalidParameterError, match="host type networking can't be used with links"):
        links.settle(["on-host"], store.get)


async def test_a_child_is_found_by_alias_hostname_and_name_until_it_is_gone(store: ContainerStore) -> None:
    db = await put(store, "db")
    web = await put(store, "web", data=db.id)
    with pytest.raises(ConflictError, match="Cannot link to a non running container: /db AS /web/data"):
        links.linked(web, store.find)
    run(db, "172.17.0.5/16")
    (child,) = links.linked(web, store.find)
    assert links.hosts_lines([child]) == "172.17.0.5\tdata db-host db\n"
    assert links.shown(web, store.find) == ["/db:/web/data"]
    assert store.get("web/data") is store.get("/web/data") is db
    db.state.Endpoints = {}
    with pytest.raises(HostError, match="Cannot link to /db, as it does not belong to the default network"):
        links.linked(web, store.find)
    await store.forget(db, volumes=False)
    assert links.linked(web, store.find) == []
    assert links.shown(web, store.find) is None


async def test_parents_find_a_child_where_it_is_now(store: ContainerStore) -> None:
    db = await put(store, "db")
    web = await put(store, "web", data=db.id)
    run(web, "172.17.0.4/16")
    (web.folder / "hosts").write_text("127.0.0.1\tlocalhost\n172.17.0.5\tdata db-host db\n10.0.0.1\tmine\n")
    run(db, "172.17.0.6/16")
    again = ContainerStore(web.folder.parent)
    await again.open()
    assert [(parent.id, alias) for parent, alias in again.linking_to(db.id)] == [(web.id, "data")]
    for _ in range(2):
        links.refresh(db, store.linking_to(db.id))
        text = (web.folder / "hosts").read_text()
        assert text == "127.0.0.1\tlocalhost\n10.0.0.1\tmine\n172.17.0.6\tdata db-host db\n"
    await store.unlink(web, "data")
    assert store.linking_to(db.id) == []
    links.rewrite(web, links.as_linked("data", db, None))
    assert (web.folder / "hosts").read_text() == "127.0.0.1\tlocalhost\n10.0.0.1\tmine\n"


def test_a_file_that_its_container_made_large_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    for text in ("10.0.0.1\tmine\r\n\udcff\n", ""):
        path.write_bytes(text.encode(errors="surrogateescape"))
        files.rewrite(path, lambda before: before + "10.0.0.2\tweb\n")
        assert path.read_bytes() == text.encode(errors="surrogateescape") + b"10.0.0.2\tweb\n"
    with path.open("w") as file:
        file.truncate(1 << 33)
    with pytest.raises(HostError, match="it is larger than 1 MiB"):
        files.rewrite(path, lambda before: before)
    assert path.stat().st_size == 1 << 33


def test_the_environment_is_dockers() -> None:
    child = Linked(
        "my-db", ("my-db",), ("172.17.0.5",), ["MODE=x", "HOME=/", "ALONE"], ["80/tcp", "53/udp", "81", "9/tcp"]
    )
    assert links.environment("web", child) == [
        "MY_DB_PORT=tcp://172.17.0.5:9",
        *(
            line
            for protocol, number in (("tcp", 9), ("tcp", 80), ("tcp", 81), ("udp", 53))
            for own in (f"MY_DB_PORT_{number}_{protocol.upper()}",)
            for line in (
                f"{own}={protocol}://172.17.0.5:{number}",
                f"{own}_ADDR=172.17.0.5",
                f"{own}_PORT={number}",
                f"{own}_PROTO={protocol}",
            )
        ),
        "MY_DB_PORT_80_TCP_START=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP_PORT_START=80",
        "MY_DB_PORT_80_TCP_END=tcp://172.17.0.5:81",
        "MY_DB_PORT_80_TCP_PORT_END=81",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_MODE=x",
    ]
