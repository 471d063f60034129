"""Signals that people send to a daemon to look into it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

_WAITING = """
import subprocess, sys, time
from base import looked_into

looked_into.answer()

def a_place_to_be_seen():
    print("waits", flush=True)
    sys.stdin.readline()

a_place_to_be_seen()
started = subprocess.Popen(["sleep", "60"])
print(started.pid, flush=True)
sys.stdin.readline()
started.kill()
started.wait()
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_they_end_no_process(process: subprocess.Popen[str]) -> None:
    """dockerd writes its stacks at SIGUSR1 and reads its configuration at SIGHUP."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1):
        process.send_signal(number)
    process.stdin.write("\n")
    process.stdin.flush()
    started = int(process.stdout.readline())
    with open(f"/proc/{started}/status") as file:
        ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
    assert not ignored & (1 << (signal.SIGHUP - 1)), "what is started has the default"
    _, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert "a_place_to_be_seen" in errors
