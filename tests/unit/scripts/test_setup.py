"""``scripts/setup`` on a host of its own: what lies outside of the checkout is below DESTDIR, systemctl only records."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
COMPLETIONS = {
    "bash": "share/bash-completion/completions/swarm",
    "zsh": "share/zsh/site-functions/_swarm",
    "fish": "share/fish/vendor_completions.d/swarm.fish",
}


class Host:
    """A checkout, a root file system and a PATH on which nothing reaches the real host.

    Attributes:
        uid: what ``id -u`` says.
    """

    def __init__(self, base: Path) -> None:
        self.root, self.tools, self.uid = base / "root", base / "tools", 0
        self.tools.mkdir(parents=True)
        self._calls = base / "systemctl.calls"
        self.checkout = self.make_checkout(base / "checkout")
        for name, body in {
            "apt-get": "exit 100",
            "dpkg-query": "printf installed",
            "docker": "exit 0",
            "python3.13": "exit 0",
            "systemctl": f'echo "$*" >>{self._calls}',
        }.items():
            script(self.tools / name, body)

    def make_checkout(self, path: Path) -> Path:
        """A copy of what setup reads, with an environment that is up to date."""
        venv = path / ".venv"
        (venv / "bin").mkdir(parents=True)
        (path / "scripts").mkdir()
        for name in ("setup", "swarmd.service"):
            shutil.copy(REPOSITORY / "scripts" / name, path / "scripts" / name)
        for name in ("api", "base", "manager", "pki", "proto", "runtime", "worker"):
            (path / name).mkdir()
        (path / "api" / "swarmd.py").write_text("first\n")
        (path / "pyproject.toml").write_text("project\n")
        for lock, stamp in (("requirements.lock", ".stamp"), ("requirements-dev.lock", ".stamp-dev")):
            (path / lock).write_text(f"{lock}\n")
            (venv / stamp).write_text(hashlib.sha256(f"{lock}\nbuild\nproject\n".encode()).hexdigest())
        (path / "requirements-build.lock").write_text("build\n")
        script(venv / "bin" / "python", "exit 0")
        script(venv / "bin" / "swarmd", "exit 0")
        script(venv / "bin" / "swarm", f'exec {sys.executable} -c "from cli.main import main; main()" "$@"')
        return path

    def setup(self, *options: str, checkout: Path | None = None) -> subprocess.CompletedProcess[str]:
        script(self.tools / "id", f"echo {self.uid}")
        return subprocess.run(
            [str((checkout or self.checkout) / "scripts" / "setup"), *options],
            env={
                "PATH": f"{self.tools}:/usr/bin:/bin",
                "HOME": "/home/me",
                "DESTDIR": str(self.root),
                "PYTHONPATH": str(REPOSITORY),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def boot_systemd(self) -> None:
        (self.root / "run/systemd/system").mkdir(parents=True)

    def calls(self) -> list[str]:
        """What systemctl was called with since the last time."""
        found = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return found

    def files(self) -> set[str]:
        """Files and links outside of the checkout."""
        return {
            str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_symlink() or path.is_file()
        }

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system/swarmd.service"


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def commands_below(prefix: str) -> set[str]:
    return {f"{prefix}/{name}" for name in ("bin/swarm", "bin/swarmd", *COMPLETIONS.values())}


def test_the_commands_are_on_the_path_and_removed_again(host: Host) -> None:
    for _ in range(2):
        done = host.setup()
        assert done.returncode == 0, done.stderr
        assert host.files() == commands_below("usr/local")
        for name in ("swarm", "swarmd"):
            assert os.readlink(host.root / "usr/local/bin" / name) == str(host.checkout / ".venv/bin" / name)
    removed = host.setup("--remove")
    assert removed.returncode == 0, removed.stderr
    assert "/var/lib/swarm" in removed.stderr
    assert host.files() == set()
    assert host.setup("--remove").returncode == 0
    assert host.calls() == []


def test_without_root_the_commands_are_the_users(host: Host) -> None:
    host.uid = 1000
    done = host.setup()
    assert done.returncode == 0, done.stderr
    assert host.files() == commands_below("home/me/.local")
    assert "/home/me/.local/bin is not on your PATH" in done.stderr
    assert host.setup("--remove").returncode == 0
    assert host.files() == set()


@pytest.mark.parametrize("options", [("--dev",), ("--no-commands",)])
def test_what_tests_and_the_quickstart_set_up_is_the_checkout_alone(host: Host, options: tuple[str, ...]) -> None:
    done = host.setup(*options)
    assert done.returncode == 0, done.stderr
    assert host.files() == set()
    assert "ready: .venv/bin/swarmd" in done.stderr


def test_commands_for_a_developer_who_asks(host: Host) -> None:
    assert host.setup("--dev", "--commands").returncode == 0
    assert host.files() == commands_below("usr/local")


@pytest.mark.parametrize(
    "path", ["usr/local/bin/swarm", "usr/local/bin/swarmd", f"usr/local/{COMPLETIONS['bash']}", "unit"]
)
def test_what_is_not_ours_is_neither_overwritten_nor_removed(host: Host, path: str) -> None:
    host.boot_systemd()
    theirs = host.unit if path == "unit" else host.root / path
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs\n")
    before = host.files()
    refused = host.setup("--service")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert f"{theirs} is there already and not of this checkout" in refused.stderr
    assert host.files() == before
    removed = host.setup("--remove")
    assert f"{theirs} is not of this checkout: left alone" in removed.stderr
    assert theirs.read_text() == "theirs\n"
    assert host.calls() == []


def test_another_checkout_is_not_overwritten(host: Host, tmp_path: Path) -> None:
    assert host.setup().returncode == 0
    other = host.make_checkout(tmp_path / "other")
    assert host.setup(checkout=other).returncode == 1
    host.setup("--remove", checkout=other)
    assert host.files() == commands_below("usr/local")
    assert os.readlink(host.root / "usr/local/bin/swarm") == str(host.checkout / ".venv/bin/swarm")


def test_a_unit_of_this_checkout_is_enabled_started_and_restarted_only_when_something_changed(host: Host) -> None:
    host.boot_systemd()
    first = host.setup("--service")
    assert first.returncode == 0, first.stderr
    assert f"ExecStart={host.checkout}/.venv/bin/swarmd\n" in host.unit.read_text()
    assert "@" not in host.unit.read_text()
    assert {"UMask=0077", "LimitCORE=0"} <= set(host.unit.read_text().splitlines())
    assert host.calls() == ["daemon-reload", "--quiet enable swarmd", "restart swarmd"]
    again = host.setup("--service")
    assert again.returncode == 0, again.stderr
    assert host.calls() == ["--quiet enable swarmd", "start swarmd"]
    (host.checkout / "api" / "swarmd.py").write_text("an upgrade\n")
    assert host.setup("--service").returncode == 0
    assert host.calls() == ["daemon-reload", "--quiet enable swarmd", "restart swarmd"]
    removed = host.setup("--remove")
    assert removed.returncode == 0, removed.stderr
    assert host.calls() == ["--quiet disable --now swarmd", "daemon-reload"]
    assert host.files() == set()


def test_a_daemon_that_does_not_start_is_told(host: Host) -> None:
    host.boot_systemd()
    script(host.tools / "systemctl", "case $1 in restart) exit 1 ;; esac")
    done = host.setup("--service")
    assert done.returncode == 1
    assert "journalctl -u swarmd" in done.stderr


def test_a_host_without_systemd_is_told_in_one_line(host: Host) -> None:
    done = host.setup("--service")
    assert (done.returncode, host.files()) == (1, set())
    assert len(done.stderr.splitlines()) == 1
    assert "no systemd" in done.stderr


def test_a_unit_needs_root(host: Host) -> None:
    host.boot_systemd()
    assert host.setup("--service").returncode == 0
    before, _ = host.files(), host.calls()
    host.uid = 1000
    for option in ("--service", "--remove"):
        done = host.setup(option)
        assert done.returncode == 1
        assert "not root" in done.stderr
        assert (host.files(), host.calls()) == (before, [])


def test_a_folder_that_a_unit_cannot_name_is_refused(host: Host, tmp_path: Path) -> None:
    host.boot_systemd()
    done = host.setup("--service", checkout=host.make_checkout(tmp_path / 'a "b"'))
    assert done.returncode == 1
    assert host.files() == set()
    assert "cannot name this folder" in done.stderr


@pytest.mark.parametrize("options", [("--what",), ("--remove", "--service"), ("--help",)])
def test_an_option_that_is_none_prints_the_usage(host: Host, options: tuple[str, ...]) -> None:
    done = host.setup(*options)
    assert (done.returncode, host.files()) == (2, set())
    assert done.stdout.startswith("# Set up this host")
    assert done.stdout.splitlines()[-1].startswith("# of /usr/local/bin.")


def test_the_completion_of_bash_completes_the_words_of_swarm(host: Host) -> None:
    assert host.setup().returncode == 0
    asked = """
        source "$1"; COMP_WORDS=(swarm service sc); COMP_CWORD=2
        _swarm_completion swarm; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", asked, "-", str(host.root / "usr/local" / COMPLETIONS["bash"])],
        env={"PATH": f"{host.root}/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "scale\n"


def test_nothing_is_fetched_that_has_no_hash(host: Host) -> None:
    """Not what builds the package either: pip's isolation would fetch that by name."""
    calls = host.checkout / "pip.calls"
    script(host.checkout / ".venv/bin/python", f'echo "PYTHONPATH=$PYTHONPATH $*" >>{calls}')
    (host.checkout / "pyproject.toml").write_text("changed\n")
    done = host.setup("--no-commands")
    assert done.returncode == 0, done.stderr
    installs = [line for line in calls.read_text().splitlines() if "pip install" in line]
    fetching = [line for line in installs if "--require-hashes -r" in line or "--require-hashes --no-deps" in line]
    assert [line.split(" -r ")[1] for line in fetching] == ["requirements.lock", "requirements-build.lock"]
    [building] = [line for line in installs if line not in fetching]
    assert building.startswith(f"PYTHONPATH={host.checkout}/.venv/build ")
    assert building.endswith("--no-deps --no-build-isolation -e .")


def test_what_builds_the_package_is_locked_with_all_that_it_needs() -> None:
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (REPOSITORY / "requirements-build.lock").read_text().replace("\\\n", "").splitlines()
    assert all("--hash=sha256:" in line for line in locked)
    assert set(wanted) <= {line.split()[0] for line in locked}
