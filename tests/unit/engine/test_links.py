"""Legacy links between real containers."""

from __future__ import annotations

import pytest

from runtime.errors import ConflictError, ContainerNotFoundError, InvalidParameterError
from runtime.types import HostConfig
from tests.unit.engine.support import Bench
from tests.unit.engine.test_networking import SERVER

pytestmark = pytest.mark.root


async def test_a_link_is_an_entry_in_hosts_variables_and_a_name(bench: Bench) -> None:
    engine = bench.engine
    db = await bench.run(*SERVER, host=HostConfig(), name="db", ExposedPorts={"80/tcp": {}})
    linked = HostConfig(Links=["db:data"])
    script = "wget -qO- http://data && wget -qO- http://db && env | grep DATA_PORT_80_TCP_ADDR; sleep 1000"
    web = await bench.run("sh", "-c", script, host=linked, name="web")
    address = engine.inspect(db).NetworkSettings.Networks["bridge"].IPAddress

    def hosts() -> str:
        return (bench.folder / "state" / "containers" / web / "hosts").read_text()

    assert f"{address}\tdata {db[:12]} db\n" in hosts()
    assert engine.inspect(web).HostConfig.Links == ["/db:/web/data"]
    assert [each.Names for each in engine.list() if each.Id == db] == [["/db", "/web/data"]]
    assert engine.inspect("web/data").Id == db
    blocker = await bench.run("sleep", "1000", host=HostConfig())
    await engine.disconnect("bridge", db)
    assert f"\tdata {db[:12]} db\n" not in hosts()
    await engine.connect("bridge", db)
    address = engine.inspect(db).NetworkSettings.Networks["bridge"].IPAddress
    assert f"{address}\tdata {db[:12]} db\n" in hosts()
    await engine.restart(db, timeout_s=0)
    address = engine.inspect(db).NetworkSettings.Networks["bridge"].IPAddress
    assert hosts().count("\tdata ") == 1
    assert f"{address}\tdata {db[:12]} db\n" in hosts()
    await engine.unlink("/web/data")
    assert "data" not in hosts()
    assert engine.inspect(web).HostConfig.Links is None
    with pytest.raises(ConflictError, match="cannot remove the default link name of the container"):
        await engine.unlink("db")
    with pytest.raises(ContainerNotFoundError):
        await engine.unlink("web/data")
    await engine.stop(db, timeout_s=0)
    with pytest.raises(InvalidParameterError, match="could not get container for nobody"):
        await bench.create("true", host=HostConfig(Links=["nobody"]))
    late = await bench.create("true", host=linked)
    with pytest.raises(ConflictError, match="Cannot link to a non running container: /db AS "):
        await engine.start(late)
    await engine.remove(blocker, force=True)
