"""What confines a container, asked by its own system calls: tiny programs for x86-64, on real runc."""

from __future__ import annotations

import asyncio
import platform
import struct
import subprocess
from pathlib import Path

import pytest

from runtime.containers.apparmor import AppArmor
from runtime.errors import InvalidParameterError
from runtime.types import HostConfig
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="its programs are of x86-64"),
]

EPERM, EACCES, ENOSYS = 1, 13, 38
AF_INET, AF_ALG, AF_VSOCK = 2, 38, 40
SOCK_STREAM = 1
_BASE, _HEADERS = 0x400000, 64 + 56
_SYSCALL, _INT80 = b"\x0f\x05", b"\xcd\x80"
_EXIT_WITH_ERRNO = b"\xf7\xd8\x89\xc7\xb8\x3c\x00\x00\x00" + _SYSCALL  # neg eax; mov edi, eax; mov eax, 60


def program(code: bytes) -> bytes:
    """A static ELF file that runs ``code`` and then exits with the errno of its last call, -fd when it had none."""
    code += _EXIT_WITH_ERRNO
    size = _HEADERS + len(code) + 64
    header = struct.pack(
        "<4s5B7x2HI3QI6H",
        *(b"\x7fELF", 2, 1, 1, 0, 0),
        *(2, 62, 1, _BASE + _HEADERS, 64, 0, 0),
        *(64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<2I6Q", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return (header + segment + code).ljust(size, b"\0")


def socket_call(family: int) -> bytes:
    """``socket(family, SOCK_STREAM, 0)`` with all 64 bits of ``family`` in its register."""
    return b"\x48\xbf" + struct.pack("<Q", family) + b"\xbe\x01\0\0\0\x31\xd2\xb8\x29\0\0\0" + _SYSCALL


def socketcall_call(family: int) -> bytes:
    """The same by ``socketcall(SYS_SOCKET, &arguments)`` of the table of 32 bits; they lie before the code."""
    arguments = struct.pack("<3I", family, SOCK_STREAM, 0)
    jump = b"\xeb" + bytes([len(arguments)])
    where = struct.pack("<I", _BASE + _HEADERS + len(jump))
    return jump + arguments + b"\xb8\x66\0\0\0\xbb\x01\0\0\0\xb9" + where + _INT80


def write_program(folder: Path, code: bytes) -> Path:
    path = folder / "program"
    path.write_bytes(program(code))
    path.chmod(0o755)
    return path


def ends_by_a_signal(path: Path) -> bool:
    return subprocess.run([path], check=False).returncode < 0


async def exit_code(bench: Bench, folder: Path, code: bytes) -> int:
    """Of a container that runs the code with the default settings."""
    path = write_program(folder, code)
    host = HostConfig(NetworkMode="none", Binds=[f"{path}:/program:ro"])
    container_id = await bench.run("/program", host=host)
    return (await bench.engine.wait(container_id)).StatusCode


@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK, 2**32 + AF_ALG, 2**32 + AF_VSOCK, 2**63 + AF_VSOCK])
async def test_no_socket_of_the_kernels_ciphers_or_of_virtual_machines(
    bench: Bench, tmp_path: Path, family: int
) -> None:
    """CVE-2026-31431; with more bits than the kernel looks at as well."""
    assert await exit_code(bench, tmp_path, socket_call(family)) == EPERM


async def test_other_sockets_are_made(bench: Bench, tmp_path: Path) -> None:
    assert await exit_code(bench, tmp_path, socket_call(AF_INET)) > 200


@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK])
async def test_nor_by_socketcall(bench: Bench, tmp_path: Path, family: int) -> None:
    code = socketcall_call(family)
    if await asyncio.to_thread(ends_by_a_signal, write_program(tmp_path, code)):
        pytest.skip("this kernel runs no programs of 32 bits")
    assert await exit_code(bench, tmp_path, code) == (EACCES if AppArmor().confines else ENOSYS)


guarded = pytest.mark.skipif(not AppArmor().confines, reason="AppArmor is off, or its parser is missing")


@guarded
async def test_under_apparmor_programs_of_32_bits_open_sockets(bench: Bench, tmp_path: Path) -> None:
    """By socketcall, whose arguments the kernel looks at then (``test_nor_by_socketcall``)."""
    assert await exit_code(bench, tmp_path, socketcall_call(AF_INET)) > 200


@guarded
async def test_a_container_runs_under_the_default_profile_and_hears_signals(bench: Bench) -> None:
    script = "cat /proc/self/attr/current; mount -t tmpfs x /tmp || echo refused; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    host = HostConfig(NetworkMode="none", CapAdd=["SYS_ADMIN"])
    container_id = await bench.run("sh", "-c", script, host=host)
    assert bench.engine.inspect(container_id).AppArmorProfile == "swarm-default"
    await until(
        lambda: b"ready" in (bench.folder / f"state/containers/{container_id}/{container_id}.log").read_bytes(),
        what="it waits for its signal",
    )
    await bench.engine.stop(container_id, timeout_s=60)
    assert (await bench.engine.wait(container_id)).StatusCode == 3
    output = await bench.output(container_id)
    assert "swarm-default (enforce)" in output
    assert "refused" in output


@guarded
@pytest.mark.parametrize(
    ("host", "profile"),
    [
        (HostConfig(NetworkMode="none", Privileged=True), "unconfined"),
        (HostConfig(NetworkMode="none", SecurityOpt=["apparmor=unconfined"]), "unconfined"),
        (HostConfig(NetworkMode="none", SecurityOpt=["apparmor=docker-default"]), "swarm-default (enforce)"),
    ],
)
async def test_the_option_chooses(bench: Bench, host: HostConfig, profile: str) -> None:
    container_id = await bench.run("cat", "/proc/self/attr/current", host=host)
    await bench.engine.wait(container_id)
    assert (await bench.output(container_id)).strip() == profile


@guarded
async def test_a_profile_that_is_not_there_is_the_starts_error(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", SecurityOpt=["apparmor=nope"])
    container_id = await bench.create("true", host=host)
    with pytest.raises(InvalidParameterError, match="'nope' is not loaded on this host"):
        await bench.engine.start(container_id)


@pytest.mark.skipif(AppArmor().enabled, reason="AppArmor is on")
async def test_a_profile_is_refused_where_there_is_no_apparmor(bench: Bench) -> None:
    for option in ("apparmor=docker-default", "label=type:container_t"):
        with pytest.raises(InvalidParameterError, match=r"not (enabled on this host|applied here)"):
            await bench.create("true", host=HostConfig(NetworkMode="none", SecurityOpt=[option]))
    assert bench.engine.security_options() == ["name=seccomp,profile=builtin"]
