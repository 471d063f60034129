"""What a call from the node process to its manager process costs: the unix carrier beside grpc.aio.

Run: ``python -m tests.bench.bench_calls [--calls 3000]``. The answer is empty, so this is the carrier's price alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc.aio

from base.unix_rpc import UnixChannel, UnixServer
from manager.control.rpc import control_handler
from proto.control_pb2 import GetManagerInfoRequest, GetManagerInfoResponse
from proto.control_pb2_grpc import ControlStub

CARRIERS = ("grpc.aio", "unix_rpc")
CLIENTS = 16


def serve(carrier: str, target: str) -> None:
    """Answer every call with nothing, until terminated."""

    async def answer(_method: str, _request: Any) -> Any:
        return GetManagerInfoResponse()

    async def run() -> None:
        server: grpc.aio.Server = UnixServer() if carrier == "unix_rpc" else grpc.aio.server()
        server.add_generic_rpc_handlers((control_handler(answer),))
        server.add_insecure_port(target)
        await server.start()
        await asyncio.Event().wait()

    asyncio.run(run())


async def measure(carrier: str, target: str, calls: int) -> None:
    channel: grpc.aio.Channel = UnixChannel(target) if carrier == "unix_rpc" else grpc.aio.insecure_channel(target)
    control, request = ControlStub(channel), GetManagerInfoRequest()
    await control.GetManagerInfo(request, wait_for_ready=True, timeout=20)
    times = []
    before = time.process_time()
    for _ in range(calls):
        begin = time.perf_counter()
        await control.GetManagerInfo(request, timeout=20)
        times.append(time.perf_counter() - begin)
    processor_s = time.process_time() - before

    async def client() -> None:
        for _ in range(calls // CLIENTS):
            await control.GetManagerInfo(request, timeout=20)

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    together_s = (time.perf_counter() - begin) / (calls // CLIENTS * CLIENTS)
    await channel.close()
    print(
        f"{carrier:9} one at a time {statistics.median(times) * 1e6:5.0f} us, "
        f"{CLIENTS} at a time {together_s * 1e6:5.0f} us, the client's processor {processor_s / calls * 1e6:5.0f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    calls: int = parser.parse_args().calls
    spawn = get_context("spawn")  # gRPC does not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        for carrier in CARRIERS:
            target = f"unix:{Path(folder) / carrier}"
            server = spawn.Process(target=serve, args=(carrier, target))
            server.start()
            asyncio.run(measure(carrier, target, calls))
            assert server.pid is not None
            os.kill(server.pid, signal.SIGTERM)
            server.join()


if __name__ == "__main__":
    main()
