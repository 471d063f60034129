"""A daemon starts quickly because each process imports what it needs and nothing more, which is counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from api.swarmd import SHARED, without_host_certificates

MARKED = ("aiohttp", "cryptography", "google", "grpc", "manager", "pyroute2", "runtime.engine", "worker")


def imported_with(statements: str) -> set[str]:
    """Which of the marked packages are there afterwards, in an interpreter of its own."""
    code = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    return {mark for mark in MARKED if any(name == mark or name.startswith(f"{mark}.") for name in found)}


def test_options_and_checks_of_the_host_come_before_anything_heavy() -> None:
    assert imported_with("import api.swarmd, runtime.system") == set()


def test_what_both_processes_share_is_of_neither() -> None:
    assert imported_with(f"import {', '.join(SHARED)}") == {"cryptography", "google", "grpc"}


def test_the_node_imports_no_manager() -> None:
    assert "manager" not in imported_with("import api.daemon")


def test_a_manager_imports_nothing_of_the_node() -> None:
    assert imported_with("import api.manager_process") == {"cryptography", "google", "grpc", "manager"}


@pytest.mark.parametrize("before", [None, "/etc/ssl/own.pem"])
def test_the_users_own_certificates_are_as_they_were(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    if before is None:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    else:
        monkeypatch.setenv("SSL_CERT_FILE", before)
    with without_host_certificates():
        assert os.environ["SSL_CERT_FILE"] == os.devnull
    assert os.environ.get("SSL_CERT_FILE") == before


def test_the_process_that_unpacks_imports_what_that_needs_and_no_more() -> None:
    """A megabyte and more each: they would stay for as long as it does, on every host."""
    code = "import sys, runtime.unpack.process; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "dataclasses", "inspect", "ctypes.util", "msgspec", "structlog", "ssl", "logging", "subprocess"}
    assert not heavy & set(modules)
