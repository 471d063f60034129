"""Reading this host's links and addresses, with pyroute2 as witness."""

from __future__ import annotations

import asyncio
import ipaddress

from pyroute2 import IPRoute

from runtime.kernel import netlink
from worker.membership.addresses import system_addresses


def test_links_and_addresses_are_those_that_pyroute2_reads() -> None:
    with netlink.connection() as sock:
        links, addresses = netlink.links(sock), netlink.addresses(sock)
    with IPRoute() as witness:
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in witness.get_links()}
        seen = [
            (address["index"], str(address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")), address["scope"])
            for address in witness.get_addr()
        ]
    assert {index: name for name, (index, _, _) in links.items()} == names
    assert [(address.link_index, str(address.ip), address.scope) for address in addresses] == seen
    assert ipaddress.ip_address("127.0.0.1") in [address.ip for address in addresses]


async def test_the_addresses_of_a_node_are_those_that_others_may_know() -> None:
    found = await system_addresses()
    assert not any(address.interface == "lo" for address in found)
    assert not any(ipaddress.ip_address(address.ip).is_link_local for address in found)
    assert found == await asyncio.wait_for(system_addresses(), 10)
