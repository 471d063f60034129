"""Which AppArmor profile a container gets, on hosts made of files: the kernel's folder, and a parser that notes down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.containers import apparmor
from runtime.containers.apparmor import AppArmor
from runtime.errors import HostError, InvalidParameterError


class Host:
    """``parser`` loads what it is given unless ``refusing``; ``loads`` counts."""

    def __init__(self, folder: Path) -> None:
        self.sys = folder / "sys"
        self.kernel = self.sys / "kernel/security/apparmor"
        self.profiles, self.seen = self.kernel / "profiles", folder / "seen"
        (self.kernel / "features/network_v8").mkdir(parents=True)
        self.profiles.write_text("/usr/bin/man (enforce)\nown profile (complain)\n")
        enabled = self.sys / "module/apparmor/parameters/enabled"
        enabled.parent.mkdir(parents=True)
        enabled.write_text("Y\n")
        self.etc = folder / "etc"
        (self.etc / "abi").mkdir(parents=True)
        (self.etc / "abi/3.0").touch()
        self.parser = folder / "apparmor_parser"
        self.accept()

    def accept(self) -> None:
        self._script(f'cat >>{self.seen}; echo "swarm-default (enforce)" >>{self.profiles}; [ "$1" = -Kr ]')

    def refuse(self) -> None:
        self._script("echo no such feature; exit 1")

    def _script(self, body: str) -> None:
        self.parser.write_text(f"#!/bin/sh\n{body}\n")
        self.parser.chmod(0o755)

    def made(self, *, parser: bool = True) -> AppArmor:
        return AppArmor(sys=self.sys, etc=self.etc, parser=str(self.parser) if parser else "")

    def loads(self) -> int:
        return self.seen.read_text().count("profile swarm-default") if self.seen.exists() else 0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "privileged", "profile"),
    [
        ("", False, "swarm-default"),
        ("docker-default", False, "swarm-default"),
        ("", True, "unconfined"),
        ("docker-default", True, "swarm-default"),
        ("unconfined", False, "unconfined"),
        ("/usr/bin/man", False, "/usr/bin/man"),
        ("own profile", True, "own profile"),
    ],
)
def test_where_it_is_on_each_container_has_a_profile(host: Host, wanted: str, privileged: bool, profile: str) -> None:
    made = host.made()
    assert made.choose(wanted, privileged=privileged) == made.shown(wanted, privileged=privileged) == profile
    assert made.hides_sockets(profile) == (profile == "swarm-default")
    assert host.loads() == (profile == "swarm-default")


def test_a_profile_that_is_not_loaded_is_refused(host: Host) -> None:
    for name in ("nope", "own", "man", "swarm-default (enforce)"):
        with pytest.raises(InvalidParameterError, match="is not loaded on this host"):
            host.made().choose(name, privileged=False)


def test_the_default_one_is_loaded_once_by_each_daemon_and_when_somebody_took_it_away(host: Host) -> None:
    made = host.made()
    for _ in range(3):
        made.choose("", privileged=False)
    assert host.loads() == 1
    host.profiles.write_text("")
    made.choose("", privileged=False)
    assert host.loads() == 2
    host.made().choose("", privileged=False)  # of an earlier version, perhaps
    assert host.loads() == 3


def test_a_default_one_that_cannot_be_loaded_is_the_starts_error_and_says_what_to_do(host: Host) -> None:
    host.refuse()
    with pytest.raises(HostError, match=r"no such feature \(--security-opt apparmor=unconfined"):
        host.made().choose("", privileged=False)
    assert host.made().choose("unconfined", privileged=False) == "unconfined"


@pytest.mark.parametrize(
    "off",
    [
        lambda host: (host.sys / "module/apparmor/parameters/enabled").write_text("N\n"),
        lambda host: (host.sys / "module/apparmor/parameters/enabled").unlink(),
        lambda host: host.kernel.rename(host.sys / "elsewhere"),
    ],
)
def test_where_it_is_off_nothing_is_applied_and_a_profile_is_refused(host: Host, off: Callable[[Host], object]) -> None:
    off(host)
    made = host.made()
    for wanted in ("", "unconfined"):
        assert made.choose(wanted, privileged=False) == ""
    for wanted in ("docker-default", "own profile"):
        with pytest.raises(InvalidParameterError, match="AppArmor is not enabled on this host"):
            made.check(wanted)
    assert (made.confines, made.warnings, made.hides_sockets("swarm-default") and made.confines) == (False, [], False)


def test_without_a_parser_containers_run_unconfined_and_info_says_so(host: Host) -> None:
    made = host.made(parser=False)
    assert made.choose("", privileged=False) == ""
    assert made.choose("own profile", privileged=False) == "own profile"
    with pytest.raises(InvalidParameterError, match="install the package apparmor"):
        made.check("docker-default")
    assert not made.confines
    assert "apparmor_parser is missing" in made.warnings[0]


@pytest.mark.parametrize("lacking", ["the kernel's feature", "the ABI"])
def test_a_profile_whose_rules_of_sockets_are_not_looked_at_hides_none(host: Host, lacking: str) -> None:
    if lacking == "the ABI":
        (host.etc / "abi/3.0").unlink()
    else:
        (host.kernel / "features/network_v8").rmdir()
    assert not host.made().hides_sockets("swarm-default")


def test_what_the_host_has_to_share_is_included() -> None:
    bare = apparmor.profile_text(daemon="unconfined", shared=frozenset())
    assert bare.startswith("@{PROC}=/proc/\n")
    assert "#include" not in bare
    full = apparmor.profile_text(daemon="a b", shared=frozenset({"abi/3.0", "tunables/global", "abstractions/base"}))
    assert full.startswith("abi <abi/3.0>,\n#include <tunables/global>\n")
    assert "#include <abstractions/base>" in full
    assert 'peer="a b"' in full
