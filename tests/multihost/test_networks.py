"""Overlay networks on three hosts: names, addresses, virtual IPs (features A11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docker
import pytest

from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

SERVER = ["sh", "-c", "while true; do hostname -i | nc -l -p 80; done"]
"""Says its addresses to whoever connects."""


@pytest.fixture(autouse=True)
def nothing_is_left(three: Testbed) -> Iterator[None]:
    yield
    client = three.client(1)
    for service in client.services.list():
        service.remove()
    wait_until(lambda: not client.api.tasks(), "every task is gone")
    for network in client.networks.list(filters={"driver": "overlay"}):
        if not network.attrs["Ingress"]:
            network.remove()
    for host in three.hosts():
        wait_until(lambda h=host: not three.client(h).containers.list(all=True), f"no container is left on host {host}")  # type: ignore[misc]


def create(testbed: Testbed, name: str, networks: list[str], command: list[str], replicas: int = 3) -> Any:
    return testbed.client(1).services.create(
        "busybox:latest",
        command=command,
        name=name,
        networks=networks,
        mode=docker.types.ServiceMode("replicated", replicas),
    )


def containers(testbed: Testbed, name: str, count: int) -> list[Any]:
    """Of a service that runs ``count`` tasks, over all hosts."""

    def found() -> list[Any] | None:
        running = [
            each
            for host in testbed.hosts()
            for each in testbed.client(host).containers.list(filters={"label": f"com.docker.swarm.service.name={name}"})
        ]
        return running if len(running) == count else None

    return wait_until(found, f"{count} containers of {name} run") or []


def says(container: Any, *command: str) -> str:
    return str(container.exec_run(["sh", "-c", " ".join(command)]).output.decode())


def test_services_of_a_network_find_each_other_on_all_hosts(three: Testbed) -> None:
    client = three.client(1)
    client.networks.create("front", driver="overlay")
    create(three, "web", ["front"], SERVER)
    create(three, "client", ["front"], ["sleep", "1000"])
    web, callers = containers(three, "web", 3), containers(three, "client", 3)
    addresses = {each.attrs["NetworkSettings"]["Networks"]["front"]["IPAddress"] for each in web}
    vip = client.services.list(filters={"name": "web"})[0].attrs["Endpoint"]["VirtualIPs"][0]["Addr"].partition("/")[0]
    for caller in callers:
        wait_until(lambda c=caller: vip in says(c, "nslookup web"), "web is known by name")  # type: ignore[misc]
        wait_until(
            lambda c=caller: all(each in says(c, "nslookup tasks.web") for each in addresses),  # type: ignore[misc]
            "every task of web is known",
        )
        for address in addresses:
            assert "1 packets received" in says(caller, "ping -c 1 -W 5", address)
        answers = [says(caller, "nc -w 5 web 80 < /dev/null").split() for _ in range(12)]
        assert {each for answer in answers for each in answer} & addresses == addresses


def test_a_published_port_is_answered_by_every_host_for_the_client_itself(three: Testbed) -> None:
    """Two tasks on three hosts, so one host has none: it is an entry alone. The task sees who called."""
    three.client(1).services.create(
        "busybox:latest",
        command=["sh", "-c", "while true; do nc -l -p 80 -e netstat -nt; done"],
        name="web",
        mode=docker.types.ServiceMode("replicated", 2),
        endpoint_spec=docker.types.EndpointSpec(ports={8080: 80}),
    )
    containers(three, "web", 2)
    for entry in three.hosts():
        for caller in three.hosts():
            if entry != caller:
                wait_until(
                    lambda e=entry, c=caller: three.ip(c) in answer(three, c, three.ip(e)),  # type: ignore[misc]
                    f"host {entry} leads host {caller} to a task, which sees it",
                )


def answer(testbed: Testbed, host: int, address: str) -> str:
    """What a client on a host gets from the published port of another."""
    script = f"exec 3<>/dev/tcp/{address}/8080 && timeout 3 cat <&3"
    return testbed.exec(host, ["timeout", "5", "bash", "-c", script], check=False)
