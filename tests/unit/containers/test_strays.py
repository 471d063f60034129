"""Monitors and runc calls of a dead daemon are ended by the next; what only calls itself so neither stops it nor is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.containers import conmon
from runtime.containers.conmon import Paths, end_strays

_WAITS = "echo up; read -r line"
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a process with these words for a command line, by a user of that number, in a PID namespace of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str, user: int | None = None, inside: bool = False) -> subprocess.Popen[bytes]:
        command, executable = [name, "-c", _WAITS, *words], "/bin/sh"
        if inside:
            renamed = ["bash", "-c", 'exec -a "$0" "$@"', name, executable, *command[1:]]
            command, executable = ["unshare", "--pid", "--fork", "--kill-child", *renamed], "/usr/bin/unshare"
        process = subprocess.Popen(
            command, executable=executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user, cwd="/"
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_monitors_of_containers_that_are_not_kept_are_ended(spawn: Spawn, tmp_path: Path) -> None:
    gone = spawn("conmon", f"{tmp_path}/bundle", "--cid", "gone")
    kept = spawn("conmon", f"{tmp_path}/bundle", "--cid", "kept")
    end_strays(Paths(tmp_path), {"kept"})
    assert gone.wait(30) == -9
    assert kept.poll() is None


@pytest.mark.parametrize("words", [["--cid"], ["--cid", "\udcff"], []])
def test_words_of_no_monitor_keep_no_daemon_from_starting(spawn: Spawn, tmp_path: Path, words: list[str]) -> None:
    spawn("conmon", f"{tmp_path}/bundle", *words)
    end_strays(Paths(tmp_path), set())


def test_all_that_is_waited_for_has_one_time_together(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        spawn("runc", f"{tmp_path}/runc", "delete", "kept")
    waited: list[float] = []
    now = [0.0]

    def wait(fds: list[int], _writable: object, _broken: object, timeout_s: float) -> tuple[list[int], ...]:
        waited.append(timeout_s)
        now[0] += timeout_s
        return [], [], []

    monkeypatch.setattr(conmon, "select", SimpleNamespace(select=wait))
    monkeypatch.setattr(conmon, "time", SimpleNamespace(monotonic=lambda: now[0]))
    end_strays(Paths(tmp_path), {"kept"})
    assert waited == [conmon.STRAY_TIMEOUT_S, 0.0, 0.0]


@pytest.mark.root
@pytest.mark.parametrize("how", [{"user": 65534}, {"inside": True}], ids=["another user", "in a container"])
def test_what_is_not_the_daemons_is_left_alone(
    spawn: Spawn, tmp_path: Path, how: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn("conmon", f"{tmp_path}/bundle", "--cid", "gone", **how)
    monkeypatch.setattr(conmon, "select", SimpleNamespace(select=lambda *_: pytest.fail("it is waited for")))
    end_strays(Paths(tmp_path), set())
    assert process.poll() is None
