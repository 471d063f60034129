"""The rules of bridges as text, and what is done of them when: no kernel."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from runtime.errors import HostError
from runtime.kernel.linux_network import parse_dropping_forwards
from runtime.networks import forwarding, obstacles, rules
from runtime.networks.firewall import Firewall
from runtime.networks.rules import BridgeRules, Element, GatewayMode, PublishedPort
from tests.unit.networks.fakes import RecordingKernel

TABLE = "inet engine-test"
NET = ipaddress.ip_network("10.0.0.0/24")
NET6 = ipaddress.ip_network("fd00::/64")
PORT = PublishedPort("tcp", "0.0.0.0", 80, "10.0.0.2", 8080)


def bridge(device: str = "br7", **fields: object) -> BridgeRules:
    return BridgeRules(**{"device": device, "subnets": (NET,), **fields})  # type: ignore[arg-type]  # the test's own words


def chain(name: str, text: str) -> list[str]:
    head = f"add rule {TABLE} {name} "
    return [line.removeprefix(head) for line in text.splitlines() if line.startswith(head)]


def test_to_a_bridge_go_answers_and_what_is_published() -> None:
    text = rules.add_bridge(TABLE, bridge())
    assert chain("to-br7", text) == [
        'iifname "br7" accept',
        "ct state established,related accept",
        "ct status dnat accept",
        "drop",
    ]
    assert chain("leaving4-br7", text) == ['oifname "br7" ct status dnat masquerade', 'oifname != "br7" masquerade']
    assert f"add element {TABLE} leaving_ipv4 {{ 10.0.0.0/24 : goto leaving4-br7 }}\n" in text
    assert "from-br7" not in text


def test_an_internal_bridge_has_no_way_in_or_out() -> None:
    text = rules.add_bridge(TABLE, bridge(internal=True, subnets=(NET, NET6)))
    assert chain("to-br7", text) == ['iifname "br7" accept', "drop"]
    assert chain("from-br7", text) == ['oifname != "br7" drop']
    assert "masquerade" not in text
    assert rules.port_elements(bridge(internal=True, mode_ipv4="routed"), [PORT]).keys() == {
        Element("published_ipv4_anywhere", "tcp . 80")
    }


def test_containers_that_may_not_speak_to_each_other_still_reach_published_ports() -> None:
    assert chain("to-br7", rules.add_bridge(TABLE, bridge(icc=False)))[:2] == [
        'iifname "br7" ct status dnat accept',
        'iifname "br7" drop',
    ]


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("nat-unprotected", ["meta nfproto ipv4 accept"]),
        (
            "routed",
            [
                "meta nfproto ipv4 meta l4proto icmp accept",
                "ip daddr . meta l4proto . th dport @opened_ipv4 accept",
            ],
        ),
    ],
)
def test_modes_of_the_way_in(mode: GatewayMode, found: list[str]) -> None:
    text = rules.add_bridge(TABLE, bridge(mode_ipv4=mode))
    assert chain("to-br7", text)[3:] == [*found, "drop"]
    assert ("masquerade" in text) == (mode != "routed")


def test_each_address_family_has_its_mode() -> None:
    text = rules.add_bridge(TABLE, bridge(subnets=(NET, NET6), mode_ipv6="routed"))
    assert "ip6 daddr . meta l4proto . th dport @opened_ipv6 accept" in chain("to-br7", text)
    assert "opened_ipv4" not in text
    assert "leaving4-br7" in text
    assert "leaving6-br7" not in text


def test_addresses_that_the_world_sees() -> None:
    source = ipaddress.ip_address("203.0.113.7")
    assert chain("leaving4-br7", rules.add_bridge(TABLE, bridge(sources=(source,))))[1] == (
        'oifname != "br7" snat ip to 203.0.113.7'
    )
    assert chain("leaving4-br7", rules.add_bridge(TABLE, bridge(masquerade=False))) == [
        'oifname "br7" ct status dnat masquerade'
    ]


def test_elements_of_ports() -> None:
    on_one = PublishedPort("udp", "127.0.0.1", 53, "10.0.0.2", 5353)
    six = PublishedPort("tcp", "::", 80, "fd00::2", 8080)
    open_only = PublishedPort("tcp", "0.0.0.0", 0, "10.0.0.2", 8080)
    assert rules.port_elements(bridge(), [PORT, on_one, six]) == {
        Element("published_ipv4_anywhere", "tcp . 80"): "10.0.0.2 . 8080",
        Element("published_ipv4", "127.0.0.1 . udp . 53"): "10.0.0.2 . 5353",
        Element("published_ipv6_anywhere", "tcp . 80"): "fd00::2 . 8080",
    }
    assert rules.port_elements(bridge(mode_ipv4="routed"), [open_only]) == {
        Element("opened_ipv4", "10.0.0.2 . tcp . 8080"): ""
    }
    trusted = bridge(trusted_interfaces=("eth1",))
    assert rules.port_elements(trusted, [PORT]).keys() == {
        Element("published_ipv4_anywhere", "tcp . 80"),
        Element("opened_ipv4", "10.0.0.2 . tcp . 8080"),
    }
    assert 'iifname { "eth1" } ip daddr . meta l4proto . th dport @opened_ipv4 accept' in rules.add_bridge(
        TABLE, trusted
    )


def test_a_change_is_what_changed() -> None:
    before = rules.port_elements(bridge(), [PORT])
    moved = PublishedPort("tcp", "0.0.0.0", 80, "10.0.0.3", 8080)
    assert rules.change_elements(TABLE, before, before) == ""
    assert rules.change_elements(TABLE, before, rules.port_elements(bridge(), [moved])) == (
        f"delete element {TABLE} published_ipv4_anywhere {{ tcp . 80 }}\n"
        f"add element {TABLE} published_ipv4_anywhere {{ tcp . 80 : 10.0.0.3 . 8080 }}\n"
    )


CHAINS = """table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet engine-swarm0 {
	chain forward {
		type filter hook forward priority filter; policy accept;
	}
}
table inet firewall {
	chain through {
		type filter hook forward priority filter + 10; policy drop;
	}
}
"""


def test_chains_of_others_that_drop_what_is_forwarded() -> None:
    assert parse_dropping_forwards(CHAINS) == ["ip filter FORWARD", "inet firewall through"]


def test_an_obstacle_is_told_with_its_mending_until_it_is_mended() -> None:
    chain = "ip filter FORWARD"
    (told,) = obstacles.warnings({chain: "policy drop;"}, ["swarm0", "br-1"])
    assert told == (
        "WARNING: chain FORWARD of table ip filter drops what the host forwards for containers on swarm0, br-1, by its policy: "
        "let it pass there (nft insert rule ip filter FORWARD iifname { swarm0, br-1 } accept; "
        "nft insert rule ip filter FORWARD oifname { swarm0, br-1 } accept)"
    )
    mended = 'policy drop; iifname { "swarm0", "br-1" } accept'
    assert obstacles.warnings({chain: mended}, ["swarm0", "br-1"]) == []
    assert "on br-2, by its policy" in obstacles.warnings({chain: mended}, ["swarm0", "br-2"])[0]
    assert obstacles.warnings({chain: 'policy drop; iifname "br-*" accept'}, ["br-1", "br-2"]) == []


# ---- the firewall


class Watched(RecordingKernel):
    """Notes the commands that were carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[str] = []

    async def run_rules(self, commands: str, namespace: str = "") -> None:
        await super().run_rules(commands, namespace)
        self.commands.append(commands)


@pytest.fixture
def kernel() -> Watched:
    return Watched()


@pytest.fixture
def firewall(kernel: Watched, tmp_path: Path) -> Firewall:
    return Firewall(kernel, "test", tmp_path)


async def test_what_a_change_costs_does_not_grow(kernel: Watched, firewall: Firewall) -> None:
    """Nothing of what is there already is written again, whatever there is of it."""
    for number in range(50):
        net = ipaddress.ip_network(f"10.0.{number}.0/24")
        await firewall.add(bridge(f"br{number}", subnets=(net,)))
        target = PublishedPort("tcp", "0.0.0.0", 8000 + number, f"10.0.{number}.2", 80)
        await firewall.publish(bridge(f"br{number}", subnets=(net,)), f"e{number}", [target])
    kernel.commands.clear()
    await firewall.publish(bridge("br7"), "new", [PORT])
    await firewall.publish(bridge("br7"), "new", ())
    await firewall.publish(bridge("br7"), "new", ())
    await firewall.add(bridge("br99", subnets=(ipaddress.ip_network("10.99.0.0/24"),)))
    await firewall.remove(bridge("br99", subnets=(ipaddress.ip_network("10.99.0.0/24"),)))
    assert [len(commands.splitlines()) for commands in kernel.commands[:2]] == [1, 1]
    assert max(len(commands.splitlines()) for commands in kernel.commands) < 15
    assert not any("br8" in commands for commands in kernel.commands)


async def test_a_refused_change_puts_all_in_place(kernel: Watched, firewall: Firewall) -> None:
    await firewall.add(bridge())
    await firewall.publish(bridge(), "a", [PORT])
    whole = kernel.rules[TABLE]
    kernel.rules[TABLE] = whole.replace("published_ipv4_anywhere { tcp . 80 : 10.0.0.2 . 8080 }", "")
    await firewall.publish(bridge(), "a", ())
    await firewall.publish(bridge(), "a", [PORT])
    assert kernel.rules[TABLE] == whole


async def test_a_bridge_whose_rules_cannot_be_is_not_wanted(kernel: Watched, firewall: Firewall) -> None:
    await firewall.add(bridge())
    whole = kernel.rules[TABLE]
    kernel.refuse("rules", times=2)
    with pytest.raises(HostError):
        await firewall.add(bridge("br8", subnets=(NET6,)))
    await firewall.publish(bridge(), "a", ())
    assert kernel.rules[TABLE] == whole


async def test_the_next_daemons_first_change_has_all_that_runs(kernel: Watched, tmp_path: Path) -> None:
    other = bridge("br8", subnets=(ipaddress.ip_network("10.8.0.0/24"),))
    firewall = Firewall(kernel, "test", tmp_path)
    firewall.note(other, "a", [])
    firewall.note(bridge(), "b", [PORT])
    await firewall.add(bridge())
    assert 'to_bridge { "br8" : goto to-br8 }' in kernel.rules[TABLE]
    assert "published_ipv4_anywhere { tcp . 80 : 10.0.0.2 . 8080 }" in kernel.rules[TABLE]
    assert await kernel.names_in(forwarding.TABLES[4], "bridges") == {"br7", "br8"}
    await firewall.remove(bridge())
    assert await kernel.names_in(forwarding.TABLES[4], "bridges") == {"br8"}
    await firewall.remove(other)
    assert kernel.rules == {}


async def test_an_internal_bridge_needs_no_forwarding(kernel: Watched, firewall: Firewall) -> None:
    await firewall.add(bridge(internal=True))
    assert (set(kernel.rules), kernel.sysctls["ipv4/ip_forward"]) == ({TABLE}, "0")
    await firewall.add(bridge("br8", subnets=(NET6,)))
    assert set(kernel.rules) == {TABLE, forwarding.TABLES[6]}
    assert (kernel.sysctls["ipv4/ip_forward"], kernel.sysctls["ipv6/conf/all/forwarding"]) == ("0", "1")


async def test_links_that_took_a_routers_word_go_on_doing_so(kernel: Watched, firewall: Firewall) -> None:
    """Else a host would lose its default route as it begins to forward."""
    kernel.devices[""]["eth0"] = kernel.devices[""]["eth1"] = kernel.devices[""]["lo"]
    kernel.sysctls |= {"ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0"}
    await firewall.add(bridge(subnets=(NET6,)))
    assert (kernel.sysctls["ipv6/conf/eth0/accept_ra"], kernel.sysctls["ipv6/conf/eth1/accept_ra"]) == ("2", "0")
