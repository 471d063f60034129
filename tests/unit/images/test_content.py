"""The content store and its collector."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.images.content import CHUNK_BYTES, ContentStore, digest_of


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    content = ContentStore(tmp_path)
    content.open()
    return content


def test_a_collection_takes_no_blob_that_is_just_being_written(
    content: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condemned = list[Path]()
    fsync = os.fsync

    def collect_meanwhile(descriptor: int) -> None:
        condemned.extend(content.condemn(set()))
        fsync(descriptor)

    with content.lease() as lease, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", collect_meanwhile)
        lease.add("sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447")
        digest = content.put(b"hello world\n")
    assert condemned == []
    assert content.read(digest) == b"hello world\n"
    assert content.condemn(set()) == list((tmp_path / "ingest").iterdir()) != []


def test_what_a_crash_left_of_a_blob_is_gone_after_the_next_start(content: ContentStore, tmp_path: Path) -> None:
    leftover = tmp_path / "blobs" / "sha256" / f".{'a' * 64}.1.tmp"
    leftover.write_bytes(b"half")
    content.open()
    assert not leftover.exists()


async def test_partials_are_given_back_but_what_is_being_fetched(content: ContentStore, tmp_path: Path) -> None:
    going_on = asyncio.Event()

    async def fetch(offset: int) -> AsyncGenerator[bytes, None]:
        yield b"x" * CHUNK_BYTES
        await going_on.wait()
        yield b"y"

    data = b"x" * CHUNK_BYTES + b"y"
    interrupted = asyncio.ensure_future(content.ingest(digest_of(b"never"), CHUNK_BYTES + 1, fetch))
    running = asyncio.ensure_future(content.ingest(digest_of(data), len(data), fetch))
    async with asyncio.timeout(30):
        while sum(path.stat().st_size for path in (tmp_path / "ingest").iterdir()) < 2 * CHUNK_BYTES:
            await asyncio.sleep(0.01)
    interrupted.cancel()
    await asyncio.wait([interrupted])
    assert len(list((tmp_path / "ingest").iterdir())) == 2
    content.drop_partials()
    assert [path.name for path in (tmp_path / "ingest").iterdir()] == [digest_of(data)[7:]]
    going_on.set()
    await running
    assert content.has(digest_of(data))
