"""SIGKILL at any moment of pulling and removing: the next start has whole images only, and nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from runtime.images import ImageStore
from tests.support_images import Registry, make_tar

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROUNDS = 12
FILES = {f"d{number % 7}/f{number}": bytes([number % 251]) * 3000 for number in range(400)}
WORKER = """
import asyncio, pathlib, sys
from runtime.images import ImageStore

async def main(root, names):
    store = ImageStore(pathlib.Path(root))
    await store.open()
    print("ready", flush=True)
    while True:
        await asyncio.gather(*(store.pull(name) for name in names))
        print("pulled", flush=True)
        for name in names:
            await store.remove(name)

asyncio.run(main(sys.argv[1], sys.argv[2:]))
"""


async def test_killed_store_opens_with_whole_images_only(tmp_path: Path, registry: Registry) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choice = random.Random(seed)
    layers = [make_tar(list(FILES.items())), make_tar([("d0/.wh.f0", b""), ("top", os.urandom(300_000))])]
    registry.push_image("kill", "a", layers)
    registry.push_image("kill", "b", layers[:1])
    names = [f"{registry.address}/kill:{tag}" for tag in "ab"]
    root = tmp_path / "engine"
    for _ in range(ROUNDS):
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, str(root), *names, stdout=asyncio.subprocess.PIPE, cwd=Path.cwd()
        )
        assert worker.stdout is not None
        while b"ready" not in (line := await worker.stdout.readline()):
            assert line, "the worker ended by itself"
        # The moment of the kill is what is being tried out here: no condition could be waited for instead.
        await asyncio.sleep(choice.uniform(0, 0.6))
        assert worker.returncode is None
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait()
        await check(root)


async def check(root: Path) -> None:
    store = ImageStore(root)
    await store.open()
    try:
        assert list((root / "snapshots/tmp").iterdir()) == []
        for image in store.list():
            image_id = str(image["Id"])
            await store.prepare_rootfs(image_id, "check")
            path = await store.mount_rootfs("check")
            try:
                two = len(store.get(image_id).diff_ids) == 2
                for name, data in FILES.items():
                    assert (two and name == "d0/f0") or (path / name).read_bytes() == data
                assert (path / "d0/f0").exists() != two
            finally:
                await store.remove_rootfs("check")
        known = {layer.name for layer in (root / "snapshots/layers").iterdir()} - {"empty"}
        assert len(known) == max((len(store.get(str(image["Id"])).diff_ids) for image in store.list()), default=0)
    finally:
        await store.close()
