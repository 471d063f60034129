"""Whatever is wrong with JSON of others is one kind of error, at each place that reads some."""

from __future__ import annotations

import base64
from collections.abc import Callable

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from api.errors import BadRequestError
from api.filters import parse_filters
from api.lenient import decode_object
from api.requests import auth_header
from base.json_text import read_json
from runtime.containers.seccomp import parse_profile
from runtime.errors import InvalidParameterError
from runtime.images.archive import _decode_items
from runtime.images.errors import ArchiveError, ManifestError
from runtime.images.manifests import media_type_of, parse_config
from worker.agent.container_spec import registry_auth
from worker.agent.executor import ExecutorError

DEEP, NO_TEXT = b'{"a":' * 100_000, b'{"os": "\xff"}'


def _in_a_header(text: bytes) -> object:
    header = base64.urlsafe_b64encode(text).decode()
    return auth_header(make_mocked_request("GET", "/", headers={"X-Registry-Auth": header}))


@pytest.mark.parametrize("text", [DEEP, b"[" * 100_000, NO_TEXT, b"", b"1" * 10_000, b"NaN"])
def test_it_is_one_kind_of_error(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_json(text, type=object)


@pytest.mark.parametrize("text", [DEEP, NO_TEXT], ids=["deep", "no-text"])
@pytest.mark.parametrize(
    ("read", "error"),
    [
        (decode_object, BadRequestError),
        (lambda text: parse_filters(text.decode(errors="surrogateescape")), BadRequestError),
        (_in_a_header, BadRequestError),
        (lambda text: media_type_of(text), ManifestError),
        (parse_config, ManifestError),
        (_decode_items, ArchiveError),
        (lambda text: parse_profile(text.decode(errors="surrogateescape")), InvalidParameterError),
        (lambda text: registry_auth(base64.urlsafe_b64encode(text).decode()), ExecutorError),
    ],
    ids=["body", "filters", "header", "manifest", "configuration", "archive", "seccomp", "credentials"],
)
def test_each_reader_says_so_in_its_own_words(
    read: Callable[[bytes], object], error: type[Exception], text: bytes
) -> None:
    with pytest.raises(error):
        read(text)
