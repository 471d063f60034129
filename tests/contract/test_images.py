"""What the API's tests suppose of images: the real store and the fake that stands for it give the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from runtime.images import ImageNotFoundError, ImageStore
from tests.support_images import docker_archive, in_chunks, make_tar
from tests.unit.api.fakes import FakeImages

NAME = "busybox:latest"
LAYER = make_tar([("file", b"x" * 1000)])


async def real_store(folder: Path) -> ImageStore:
    store = ImageStore(folder, users=lambda image_id: ())
    await store.open()
    await store.load(in_chunks(docker_archive([LAYER], [NAME])))
    return store


@pytest.fixture(params=["real", "fake"])
async def images(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    """Each has one image, ``busybox:latest``."""
    if request.param == "fake":
        yield FakeImages()
        return
    store = await real_store(tmp_path / "engine")
    yield store
    await store.close()


@pytest.mark.parametrize("name", ["busybox", NAME])
async def test_an_image_is_found_by_its_names_and_its_id(images: ImageStore, name: str) -> None:
    found = images.get(name)
    assert images.get(found.id) == found
    assert found.id.startswith("sha256:")
    assert NAME in found.repo_tags


async def test_what_is_not_there_is_refused_in_dockerds_words(images: ImageStore) -> None:
    for look in (images.get, images.inspect):
        with pytest.raises(ImageNotFoundError, match=r"^No such image: nobody:1$"):
            look("nobody:1")


async def test_the_list_has_it_with_its_size(images: ImageStore) -> None:
    (listed,) = images.list()
    found = images.get(NAME)
    assert (listed["Id"], listed["Size"], listed["RepoTags"]) == (found.id, found.size_bytes, [NAME])
    assert images.inspect(NAME)["Size"] == found.size_bytes == sum(images.layer_sizes(NAME).values())


async def test_the_fake_says_nothing_that_the_store_does_not(tmp_path: Path) -> None:
    store, fake = await real_store(tmp_path), FakeImages()

    def subset(less: Mapping[str, object], more: Mapping[str, object]) -> bool:
        return all(key in more and type(more[key]) is type(value) for key, value in less.items())

    assert subset(fake.list()[0], store.list()[0])
    assert subset(fake.inspect(NAME), store.inspect(NAME))
    await store.close()


async def test_a_load_reads_the_whole_archive_and_names_what_was_in_it(images: ImageStore) -> None:
    read = list[bytes]()

    async def source() -> AsyncIterator[bytes]:
        async for chunk in in_chunks(docker_archive([LAYER], [NAME])):
            read.append(chunk)
            yield chunk

    assert await images.load(source()) == [NAME]
    assert b"".join(read) == docker_archive([LAYER], [NAME])
