"""Changes one by one leave in a real kernel what all of it put in place at once is."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest

from runtime.kernel import nft
from runtime.kernel.linux_network import LinuxNetwork
from runtime.networks.firewall import Firewall
from runtime.networks.rules import BridgeRules, GatewayMode, PublishedPort
from tests.unit.engine.conftest import network_namespace  # noqa: F401 - a fixture
from tests.waiting import until

pytestmark = pytest.mark.root
STEPS = 80
MODES: tuple[GatewayMode, ...] = ("nat", "nat-unprotected", "routed")


def rules() -> list[str]:
    return sorted(nft.run("list ruleset").splitlines())


def bridge(number: int, chance: random.Random) -> BridgeRules:
    return BridgeRules(
        device=f"br{number}",
        subnets=(ipaddress.ip_network(f"10.{number}.0.0/24"), ipaddress.ip_network(f"fd00:{number}::/64")),
        internal=chance.random() < 0.2,
        icc=chance.random() < 0.7,
        masquerade=chance.random() < 0.8,
        mode_ipv4=chance.choice(MODES),
        mode_ipv6=chance.choice(MODES),
        trusted_interfaces=("eth9",) if chance.random() < 0.3 else (),
    )


@pytest.mark.parametrize("seed", range(4))
async def test_changes_one_by_one_are_the_whole(network_namespace: None, tmp_path: Path, seed: int) -> None:  # noqa: F811 - the fixture
    chance = random.Random(seed)
    firewall = Firewall(LinuxNetwork(), "test", tmp_path)
    there: dict[int, BridgeRules] = {}
    owners: dict[str, BridgeRules] = {}
    for step in range(STEPS):
        number = chance.randrange(6)
        if number not in there:
            there[number] = bridge(number, chance)
            await firewall.add(there[number])
        elif chance.random() < 0.2:
            for owner in [owner for owner, known in owners.items() if known == there[number]]:
                await firewall.publish(owners.pop(owner), owner, ())
            await firewall.remove(there.pop(number))
        elif owners and chance.random() < 0.3:
            owner = chance.choice(sorted(owners))
            await firewall.publish(owners.pop(owner), owner, ())
        else:
            owners[f"e{step}"] = there[number]
            host = chance.choice(("0.0.0.0", "127.0.0.1"))
            ports = [
                PublishedPort(chance.choice(("tcp", "udp")), host, 1000 + step, f"10.{number}.0.{step}", 80),
                PublishedPort("tcp", "::", 1000 + step, f"fd00:{number}::{step}", 80),
            ]
            await firewall.publish(there[number], f"e{step}", ports)
    one_by_one = rules()
    nft.run("flush ruleset")
    await until(lambda: rules() == one_by_one, what="the same rules")
    for owner, known in owners.items():
        await firewall.publish(known, owner, ())
    for known in there.values():
        await firewall.remove(known)
    assert nft.run("list ruleset") == ""
    firewall.close()
