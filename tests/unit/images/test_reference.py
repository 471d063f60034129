"""References against the published grammar, with docker-image-py as the oracle."""

from __future__ import annotations

import pytest
from docker_image import reference as oracle
from hypothesis import given
from hypothesis import strategies as st

from runtime.images import InvalidReferenceError
from runtime.images.reference import parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("me/app", "docker.io/me/app", "me/app"),
        ("index.docker.io/library/app:x", "docker.io/library/app:x", "app:x"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("LOCAL/app", "LOCAL/app", "LOCAL/app"),
        ("host:5000/a/b:t", "host:5000/a/b:t", "host:5000/a/b:t"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        (f"quay.io/a@{DIGEST}", f"quay.io/a@{DIGEST}", f"quay.io/a@{DIGEST}"),
        (f"a:t@{DIGEST}", f"docker.io/library/a:t@{DIGEST}", f"a:t@{DIGEST}"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e", "a__b/c--d.e"),
    ],
)
def test_normalises(text: str, canonical: str, familiar: str) -> None:
    ref = parse_reference(text)
    assert (str(ref), ref.familiar) == (canonical, familiar)
    assert parse_reference(ref.familiar) == ref


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid reference format"),
        ("Busybox", r"repository name \(library/Busybox\) must be lowercase"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("a:", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        (f"a@md5:{'a' * 32}", "unsupported digest algorithm"),
        (f"a@sha256:{'A' * 64}", "invalid checksum digest format"),
        ("a/" + "b" * 300, "must not be more than 255 characters"),
        ("-a", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a\nb", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("https://a/b", "invalid reference format"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(InvalidReferenceError, match=reason):
        parse_reference(text)


@given(st.text(alphabet="abZ09._-/:@", max_size=24))
def test_agrees_with_the_oracle(text: str) -> None:
    try:
        expected = oracle.Reference.parse_normalized_named(text).string()
    except Exception:  # its errors share no base class
        expected = ""
    try:
        actual = str(parse_reference(text))
    except InvalidReferenceError:
        actual = ""
    assert actual == expected


@given(st.text(max_size=2000))
def test_any_text_is_parsed_or_refused_in_no_time(text: str) -> None:
    try:
        ref = parse_reference(text)
    except InvalidReferenceError:
        return
    assert parse_reference(str(ref)) == ref


def test_default_tag() -> None:
    assert str(parse_reference("a").with_default_tag()) == "docker.io/library/a:latest"
    assert parse_reference(f"a@{DIGEST}").with_default_tag().tag == ""
