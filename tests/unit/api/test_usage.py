"""Counters from the texts of both cgroup layouts; the rows of ps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.containers.cgroups import Layout
from runtime.containers.usage import (
    groups_of,
    parse_blkio_v1,
    parse_io_v2,
    parse_network_counters,
    parse_pairs,
    parse_system_cpu_ns,
    read_counters,
    read_usage,
    select_processes,
)
from runtime.errors import InvalidParameterError
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import FakeEngine


def test_memory_stat_is_pairs_of_name_and_number() -> None:
    assert parse_pairs("cache 4096\nrss 12\nbroken\nhierarchical_memory_limit max\n") == {"cache": 4096, "rss": 12}


def test_cpu_time_of_the_host_leaves_steal_and_guest_out() -> None:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert parse_system_cpu_ns("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3\n") == 28 * tick_ns
    assert parse_system_cpu_ns("") == 0


def test_network_counters_by_interface() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n"
        "    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
        "  eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n"
    )
    assert parse_network_counters(text) == {
        "eth0": {
            "rx_bytes": 10,
            "rx_packets": 2,
            "rx_errors": 3,
            "rx_dropped": 4,
            "tx_bytes": 20,
            "tx_packets": 5,
            "tx_errors": 6,
            "tx_dropped": 7,
        }
    }


def test_block_counters_of_both_layouts() -> None:
    old = parse_blkio_v1("8:0 Read 4096\n8:0 Write 1\nTotal 4097\n")
    new = parse_io_v2("8:0 rbytes=4096 wbytes=1 rios=1 wios=1\n")
    assert old == new
    assert [(entry.major, entry.minor, entry.op, entry.value) for entry in new] == [
        (8, 0, "read", 4096),
        (8, 0, "write", 1),
    ]


def write_files(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_counters_of_version_2_come_from_one_folder(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 5\n",
        "memory.current": "100\n",
        "memory.max": "max\n",
        "memory.stat": "inactive_file 40\n",
        "pids.current": "3\n",
        "pids.max": "max\n",
    }
    usage = read_counters({"memory": write_files(tmp_path / "one", files)}, version=2)
    assert usage.cpu_stats.cpu_usage.total_usage == 7000
    assert usage.cpu_stats.throttling_data.throttled_time == 5000
    assert (usage.memory_stats.usage, usage.memory_stats.stats) == (100, {"inactive_file": 40})
    assert (usage.pids_stats.current, usage.pids_stats.limit) == (3, 0)


def test_counters_of_version_1_come_from_a_folder_a_controller(tmp_path: Path) -> None:
    groups = {
        "cpuacct": write_files(tmp_path / "cpuacct", {"cpuacct.usage": "9\n", "cpuacct.usage_sys": "4\n"}),
        "memory": write_files(tmp_path / "memory", {"memory.usage_in_bytes": "7\n", "memory.limit_in_bytes": "50\n"}),
        "pids": write_files(tmp_path / "pids", {"pids.current": "2\n", "pids.max": "5\n"}),
    }
    usage = read_counters(groups, version=1)
    assert (usage.cpu_stats.cpu_usage.total_usage, usage.cpu_stats.cpu_usage.usage_in_kernelmode) == (9, 4)
    assert (usage.memory_stats.usage, usage.memory_stats.limit) == (7, 50)
    assert (usage.pids_stats.current, usage.pids_stats.limit) == (2, 5)


def test_process_that_is_gone_uses_nothing() -> None:
    layout = Layout(2, {"memory": Path("/sys/fs/cgroup")}, {})
    assert groups_of(2**30, layout) == {}
    assert read_usage(2**30, layout).memory_stats.usage == 0


def test_rows_of_ps_are_those_of_the_container() -> None:
    output = "UID   PID  PPID CMD\nroot    1     0 init\nroot   12     1 sh -c  sleep 9\n"
    assert select_processes(output, [12, 99]) == (
        ["UID", "PID", "PPID", "CMD"],
        [["root", "12", "1", "sh -c  sleep 9"]],
    )
    with pytest.raises(InvalidParameterError, match="PID"):
        select_processes("USER CMD\nroot sh\n", [1])


async def test_stats_of_a_stopped_container_are_zero_at_once(client: Client, engine: FakeEngine) -> None:
    sample = await (await client.get("/containers/web/stats", params={"stream": "0"})).json()
    assert (sample["name"], sample["memory_stats"]) == ("/web", {})
    assert (await client.get("/containers/web/top")).status == 409
    assert (await client.get("/containers/nobody/stats")).status == 404
