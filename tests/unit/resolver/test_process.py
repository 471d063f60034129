"""The resolver's process from without: what containers get from it, and what outlives what."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.errors import HostError
from runtime.resolver.manager import ResolverProcess
from runtime.resolver.namespaces import Opened, Sockets, namespace_of, open_in
from runtime.resolver.port import (
    Asker,
    Attachment,
    DropAsker,
    DropHolder,
    DropZone,
    Everything,
    Holder,
    PutAsker,
    PutHolder,
    PutZone,
    Upstream,
    Zone,
)
from tests.unit.resolver import places
from tests.unit.resolver.places import AAAA, NameServer, addresses, answer, ask, ask_by_tcp, question, rcode
from tests.waiting import until, wait_until

pytestmark = pytest.mark.root

NET = PutZone(Zone(network_id="n1", name="front"))
WEB = Holder(id="web", names=("web", "www"), addresses=("172.18.0.2", "fd00::2"))


def asker(pid: int, *upstreams: Upstream, forwards: bool = True, options: tuple[str, ...] = ()) -> PutAsker:
    return PutAsker(
        Asker(
            container_id=f"c{pid}",
            namespace=f"/proc/{pid}/ns/net",
            networks=(Attachment(network_id="n1"),),
            upstreams=upstreams,
            forwards=forwards,
            options=options,
        )
    )


@pytest.fixture
def pid() -> Iterator[int]:
    with places.container() as made:
        yield made


def runs(pid: int) -> bool:
    """And is not a dead child that nobody has waited for."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


async def ended(resolver: ResolverProcess) -> None:
    """The process with it: a container in what it was told would keep it."""
    await resolver.replace(Everything())
    await resolver.close()


@pytest.fixture
async def resolver(tmp_path: Path) -> AsyncIterator[ResolverProcess]:
    made = ResolverProcess(tmp_path / "r")
    yield made
    await ended(made)


async def test_a_name_is_found_in_any_case_by_udp_and_tcp_until_it_goes(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    assert addresses(await asyncio.to_thread(ask, pid, "wEb")) == ["172.18.0.2"]
    assert addresses(await asyncio.to_thread(ask, pid, "www.front", AAAA)) == ["fd00::2"]
    asked = [question("web", identifier=1), question("www", AAAA, identifier=2)]
    first, second = await asyncio.to_thread(ask_by_tcp, pid, *asked)
    assert (first[:2], addresses(first)) == (b"\0\1", ["172.18.0.2"])
    assert (second[:2], addresses(second)) == (b"\0\2", ["fd00::2"])
    await resolver.tell(DropHolder("n1", "web"))
    assert rcode(await asyncio.to_thread(ask, pid, "web")) == 2
    await resolver.tell(DropZone("n1"))
    assert rcode(await asyncio.to_thread(ask, pid, "web")) == 2


async def test_many_questions_of_one_connection_are_all_answered_though_it_says_no_more(
    resolver: ResolverProcess, pid: int
) -> None:
    with NameServer(pid, lambda asked, tcp: answer(asked, ["10.0.0.1"])) as server:
        await resolver.tell(NET, PutHolder("n1", WEB), asker(pid, Upstream(server.address, port=server.port)))
        messages = [
            question("web" if number % 10 else f"x{number}.example.com", identifier=number) for number in range(500)
        ]

        def exchange() -> list[bytes]:
            with places.socket_in(pid, socket.SOCK_STREAM) as made:
                made.connect(places.RESOLVER)
                made.sendall(b"".join(len(each).to_bytes(2, "big") + each for each in messages))
                made.shutdown(socket.SHUT_WR)
                stream, found = made.makefile("rb"), []
                while length := stream.read(2):
                    found.append(stream.read(int.from_bytes(length, "big")))
                return found

        found = await asyncio.to_thread(exchange)
    assert {int.from_bytes(each[:2], "big") for each in found} == set(range(500))
    assert all(addresses(each) for each in found)


async def test_a_container_may_serve_port_53_itself(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    with places.socket_in(pid) as udp, places.socket_in(pid, socket.SOCK_STREAM) as tcp:
        udp.bind(("0.0.0.0", 53))
        tcp.bind(("0.0.0.0", 53))
        tcp.listen()
        assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]


def another(resolver: ResolverProcess, before: int) -> bool:
    return resolver.pid not in (None, before)


async def test_a_killed_resolver_is_back_and_knows_everything(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    for _ in range(3):
        killed = resolver.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(wait_until, functools.partial(another, resolver, killed), "another one")
        await resolver.tell(PutHolder("n1", WEB))  # waits until it knows
        assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]


async def test_what_is_asked_while_it_is_dead_is_answered_by_the_next_one(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    for _ in range(2):
        await until(lambda: resolver.sockets_kept == 1, "the node has the sockets")
        killed = resolver.pid
        assert killed is not None
        with places.socket_in(pid) as udp, places.socket_in(pid, socket.SOCK_STREAM) as tcp:
            udp.connect(places.RESOLVER)
            os.kill(killed, signal.SIGKILL)
            while runs(killed):
                await asyncio.sleep(0.001)
            udp.send(question("web"))
            tcp.connect(places.RESOLVER)
            tcp.sendall(len(question("web")).to_bytes(2, "big") + question("web"))
            assert addresses(await asyncio.to_thread(udp.recv, 512)) == ["172.18.0.2"]
            assert addresses((await asyncio.to_thread(tcp.recv, 512))[2:]) == ["172.18.0.2"]


async def test_the_node_keeps_sockets_of_containers_that_ask_alone(resolver: ResolverProcess, pid: int) -> None:
    before = places.descriptors(os.getpid())
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    await until(lambda: resolver.sockets_kept == 1, "the node has the sockets")
    with places.container() as other:
        for _ in range(20):
            await resolver.tell(asker(other))
            await resolver.tell(DropAsker(f"c{other}"))
    await until(lambda: places.descriptors(os.getpid()) <= before + 4, "no socket of the other")
    await resolver.close()
    assert places.descriptors(os.getpid()) <= before


def test_sockets_of_another_namespace_are_not_taken_for_the_containers(pid: int) -> None:
    def opened(of: int, kept: Sockets | None = None) -> Opened:
        with ThreadPoolExecutor(1) as threads:  # each in a thread that ends
            return threads.submit(open_in, f"/proc/{of}/ns/net", kept).result()

    with places.container() as other:
        first = opened(other)
        port = first.udp.getsockname()
        again = opened(other, Sockets(first.udp.detach(), first.tcp.detach()))
        assert again.udp.getsockname() == port
        mine = opened(pid, Sockets(again.udp.detach(), again.tcp.detach()))
        namespaces = {os.fstat(mine.namespace).st_ino, os.stat(f"/proc/{pid}/ns/net").st_ino}
        assert namespaces == {namespace_of(mine.udp)} == {namespace_of(mine.tcp)}
        for each in (first, again, mine):
            each.close()


async def test_what_is_told_while_it_is_dead_is_answered_by(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, asker(pid))
    assert resolver.pid is not None
    os.kill(resolver.pid, signal.SIGKILL)
    await resolver.tell(PutHolder("n1", WEB))
    assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]


async def test_a_stopped_resolver_is_replaced_when_it_is_told_something(
    resolver: ResolverProcess, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await resolver.tell(NET, asker(pid))
    hung = resolver.pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    monkeypatch.setattr("runtime.resolver.manager.ANSWER_S_MAX", 0.5)
    with pytest.raises(HostError, match="does not answer"):
        await resolver.tell(PutHolder("n1", WEB))
    monkeypatch.setattr("runtime.resolver.manager.ANSWER_S_MAX", 20)
    await resolver.tell(NET, PutHolder("n1", WEB))
    assert resolver.pid != hung
    assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]


NODE = """
import asyncio, sys
from pathlib import Path
from runtime.resolver.forwarding import SOCKETS_MAX
from runtime.resolver.manager import ResolverProcess
from tests.unit.resolver.test_process import NET, WEB, PutHolder, asker

async def main():
    resolver = ResolverProcess(Path(sys.argv[1]))
    await resolver.tell(NET, PutHolder("n1", WEB), asker(int(sys.argv[2])))
    print(resolver.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_it_answers_on_when_the_node_is_killed_and_the_next_one_adopts_it(tmp_path: Path, pid: int) -> None:
    command = [sys.executable, "-c", NODE, str(tmp_path / "r"), str(pid)]
    node = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert node.stdout is not None
    while not (line := await node.stdout.readline()).strip().isdigit():  # its log
        assert line
    kept = int(line)
    node.kill()
    await node.wait()
    assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]
    resolver = ResolverProcess(tmp_path / "r")
    db = Holder(id="db", names=("db",), addresses=("172.18.0.3",))
    await resolver.replace(Everything((Zone(network_id="n1", name="front", holders=(db,)),), (asker(pid).asker,)))
    assert resolver.pid == kept
    assert addresses(await asyncio.to_thread(ask, pid, "db")) == ["172.18.0.3"]
    assert rcode(await asyncio.to_thread(ask, pid, "web")) == 2
    await resolver.close()
    assert runs(kept)  # a container needs it
    await ended(ResolverProcess(tmp_path / "r"))
    assert not runs(kept)


async def test_one_of_another_version_is_replaced(tmp_path: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ResolverProcess(tmp_path / "r")
    await before.tell(NET, asker(pid))
    old = before.pid
    await before.close()
    monkeypatch.setattr("runtime.resolver.manager.VERSION", "later")
    monkeypatch.setattr("runtime.resolver.manager.ANSWER_S_MAX", 1)
    after = ResolverProcess(tmp_path / "r")
    with pytest.raises(HostError, match="does not answer"):  # for what is started here is of this version
        await after.tell(NET, asker(pid))
    assert old is not None
    assert not runs(old)
    monkeypatch.undo()
    await ended(after)


async def test_what_it_holds_of_a_container_goes_with_it(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, PutHolder("n1", WEB), asker(pid))
    assert resolver.pid is not None
    before = places.descriptors(resolver.pid)
    with places.container() as other:
        await resolver.tell(asker(other))
        assert addresses(await asyncio.to_thread(ask, other, "web")) == ["172.18.0.2"]
    await asyncio.to_thread(places.wait_for_descriptors, resolver.pid, before)  # told by nobody: its process ended
    with places.container() as other:
        await resolver.tell(asker(other))
        await resolver.tell(DropAsker(f"c{other}"))
        await asyncio.to_thread(places.wait_for_descriptors, resolver.pid, before)
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(ask, other, "web")


async def test_a_namespace_that_is_not_there_fails_that_container_alone(resolver: ResolverProcess, pid: int) -> None:
    with places.container() as gone:
        pass
    with pytest.raises(HostError, match=f"cannot serve names to container c{gone}"):
        await resolver.tell(NET, asker(gone))
    await resolver.tell(DropAsker(f"c{gone}"), PutHolder("n1", WEB), asker(pid))
    assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]


# ---- questions for others ----------------------------------------------------------------------------------------------


async def test_servers_are_asked_from_the_container_or_from_the_host(resolver: ResolverProcess, pid: int) -> None:
    with (
        NameServer(pid, lambda asked, tcp: answer(asked, ["10.0.0.1"])) as inside,
        NameServer(os.getpid(), lambda asked, tcp: answer(asked, ["10.0.0.2"]), "127.0.0.53") as outside,
    ):
        await resolver.tell(NET, asker(pid, Upstream(inside.address, port=inside.port)))
        assert addresses(await asyncio.to_thread(ask, pid, "example.com")) == ["10.0.0.1"]
        await resolver.tell(asker(pid, Upstream(outside.address, True, outside.port)))
        assert addresses(await asyncio.to_thread(ask, pid, "example.com")) == ["10.0.0.2"]
        await resolver.tell(asker(pid, Upstream(outside.address, True, outside.port), forwards=False))
        assert rcode(await asyncio.to_thread(ask, pid, "example.com")) == 2
        assert len(outside.asked) == 1
        odd = ("timeout", "timeout:" + "9" * 5000, "ndots:", "rotate:x", "")
        await resolver.tell(
            asker(pid, Upstream("no address"), Upstream(outside.address, True, outside.port), options=odd)
        )
        assert addresses(await asyncio.to_thread(ask, pid, "www.example.com")) == ["10.0.0.2"]


async def test_the_next_server_is_asked_when_one_fails_refuses_or_says_nothing(
    resolver: ResolverProcess, pid: int
) -> None:
    with (
        NameServer(pid, lambda asked, tcp: None) as silent,
        NameServer(pid, lambda asked, tcp: answer(asked, rcode=5)) as refusing,
        NameServer(pid, lambda asked, tcp: answer(asked, ["10.0.0.1"])) as good,
    ):
        servers = [Upstream(each.address, port=each.port) for each in (silent, refusing, good)]
        await resolver.tell(NET, asker(pid, *servers, options=("timeout:2",)))
        assert addresses(await asyncio.to_thread(ask, pid, "example.com")) == ["10.0.0.1"]
        await resolver.tell(asker(pid, Upstream("127.0.0.1", port=9), servers[2]))
        assert addresses(await asyncio.to_thread(ask, pid, "example.com")) == ["10.0.0.1"]
        await resolver.tell(asker(pid, servers[1]))
        assert rcode(await asyncio.to_thread(ask, pid, "example.com")) == 2
        await resolver.tell(asker(pid, servers[0], options=("timeout:1",)))
        assert rcode(await asyncio.to_thread(ask, pid, "example.com")) == 2


async def test_an_answer_cut_short_is_asked_for_again_by_tcp(resolver: ResolverProcess, pid: int) -> None:
    def respond(asked: bytes, tcp: bool) -> bytes:
        return answer(asked, ["10.0.0.1"] * 40) if tcp else answer(asked, truncated=True)

    with NameServer(pid, respond) as server:
        await resolver.tell(NET, asker(pid, Upstream(server.address, port=server.port)))
        assert (await asyncio.to_thread(ask, pid, "example.com"))[2] & 0x02
        (whole,) = await asyncio.to_thread(ask_by_tcp, pid, question("example.com"))
        assert addresses(whole) == ["10.0.0.1"] * 40


async def test_an_answer_to_another_question_or_with_another_id_does_not_count(
    resolver: ResolverProcess, pid: int
) -> None:
    def forge(asked: bytes, tcp: bool) -> bytes | None:
        if len(server.asked) == 1:
            return bytes((asked[0] ^ 1, asked[1])) + answer(asked, ["10.6.6.6"])[2:]
        return answer(asked[:2] + question("example.org")[2:], ["10.6.6.6"])

    with NameServer(pid, forge) as server:
        await resolver.tell(NET, asker(pid, Upstream(server.address, port=server.port), options=("timeout:1",)))
        for _ in range(2):
            assert rcode(await asyncio.to_thread(ask, pid, "example.com")) == 2


async def test_it_never_asks_itself(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, asker(pid, Upstream("127.0.0.11")))
    assert rcode(await asyncio.to_thread(ask, pid, "example.com")) == 2


async def test_names_without_a_dot_stay_when_the_container_set_ndots(resolver: ResolverProcess, pid: int) -> None:
    with NameServer(pid, lambda asked, tcp: answer(asked, ["10.0.0.1"])) as server:
        upstream = Upstream(server.address, port=server.port)
        await resolver.tell(NET, asker(pid, upstream))
        assert addresses(await asyncio.to_thread(ask, pid, "other")) == ["10.0.0.1"]
        await resolver.tell(asker(pid, upstream, options=("ndots:2",)))
        kept = await asyncio.to_thread(ask, pid, "other")
        assert (rcode(kept), addresses(kept)) == (0, [])
        assert addresses(await asyncio.to_thread(ask, pid, "example.com")) == ["10.0.0.1"]


# ---- a hostile container -----------------------------------------------------------------------------------------------


async def test_a_container_that_asks_without_end_keeps_nobody_else_waiting(resolver: ResolverProcess, pid: int) -> None:
    with (
        places.container() as hostile,
        NameServer(hostile, lambda asked, tcp: None) as silent,
        places.socket_in(hostile) as flood,
    ):
        upstream = Upstream(silent.address, port=silent.port)
        await resolver.tell(NET, PutHolder("n1", WEB), asker(pid), asker(hostile, upstream, options=("timeout:20",)))
        assert resolver.pid is not None
        flood.connect(places.RESOLVER)
        for number in range(2400):
            flood.send(question(f"x{number}.example.com"))
            if number % 200 == 0:  # what was sent has been read, before the socket is full
                assert addresses(await asyncio.to_thread(ask, hostile, "web")) == ["172.18.0.2"]
        for _ in range(20):
            assert addresses(await asyncio.to_thread(ask, pid, "web")) == ["172.18.0.2"]
        assert addresses(await asyncio.to_thread(ask, hostile, "web")) == ["172.18.0.2"]
        assert places.descriptors(resolver.pid) < 1600


async def test_connections_that_say_nothing_are_bounded_and_end(resolver: ResolverProcess, pid: int) -> None:
    with places.container() as hostile:
        await resolver.tell(NET, PutHolder("n1", WEB), asker(pid), asker(hostile))
        assert resolver.pid is not None
        before = places.descriptors(resolver.pid)
        silent = [places.socket_in(hostile, socket.SOCK_STREAM) for _ in range(100)]
        for each in silent:
            each.connect(places.RESOLVER)
            each.send(b"\0")
        (got,) = await asyncio.to_thread(ask_by_tcp, pid, question("web"))
        assert addresses(got) == ["172.18.0.2"]
        assert addresses(await asyncio.to_thread(ask, hostile, "web")) == ["172.18.0.2"]
        assert places.descriptors(resolver.pid) <= before + 64
        for each in silent:
            each.close()
        (got,) = await asyncio.to_thread(ask_by_tcp, hostile, question("web"))
        assert addresses(got) == ["172.18.0.2"]


async def test_it_imports_little(resolver: ResolverProcess, pid: int) -> None:
    await resolver.tell(NET, asker(pid))
    maps = Path(f"/proc/{resolver.pid}/maps").read_text()
    assert not re.findall(r"grpc|aiohttp|cryptography|_ssl", maps)
    command = [sys.executable, "-c", "import runtime.resolver.process, sys; print(*sys.modules)"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    modules = {*(await process.communicate())[0].decode().split()}
    assert not {"asyncio", "structlog", "subprocess", "ssl", "logging"} & modules
