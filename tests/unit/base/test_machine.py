"""What a machine says of itself: nothing that names it, nothing that changes by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.machine import this_machine

ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("etc", "run", "sys/class/dmi/id", "sys/firmware/devicetree/base"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text(f"{ID}\n")
    return tmp_path


def test_facts_are_told_as_hashes_that_say_nothing_in_another_cluster(root: Path) -> None:
    (root / "sys/class/dmi/id/product_uuid").write_text("4c4c4544-0000\n")
    here = this_machine("node-1", root=root)
    assert here == this_machine("node-1", root=root)
    assert ID not in str(here)
    other = this_machine("node-2", root=root)
    assert other.id != here.id
    assert other.hardware != here.hardware


def test_an_id_that_is_made_anew_at_each_boot_is_none(root: Path) -> None:
    (root / "run/machine-id").write_text(ID)
    assert this_machine("node-1", root=root).id == ""
    (root / "run/machine-id").unlink()
    (root / "etc/machine-id").write_text("uninitialized\n")
    assert this_machine("node-1", root=root).id == ""
    (root / "etc/machine-id").unlink()
    assert this_machine("node-1", root=root).id == ""


def test_boards_without_dmi_have_a_serial_number(root: Path) -> None:
    (root / "sys/firmware/devicetree/base/serial-number").write_bytes(b"10000000abcdef01\0")
    assert this_machine("node-1", root=root).hardware


def test_interfaces_are_told_by_their_mac_addresses(root: Path) -> None:
    links = this_machine("node-1", root=root).links
    assert links == tuple(sorted(set(links)))
    assert all(len(link) == 32 for link in links)
    assert not set(links) & set(this_machine("node-2", root=root).links)
