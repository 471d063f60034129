"""The ``reference`` filter: Go's path.Match, and that no pattern takes long."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.images import InvalidArgumentError
from runtime.images.patterns import Pattern, matches_any
from runtime.images.reference import Reference, parse_reference


def fits(pattern: str, name: str) -> bool:
    return Pattern(pattern).matches(parse_reference(name))


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        ("busy*", "busybox:1", True),
        ("busybox", "busybox:1", True),
        ("busybox:?", "busybox:1", True),
        ("me/*:1", "me/app:1", True),
        ("me*", "me/app:1", False),
        ("*/*", "me/app:1", True),
        ("**/app", "me/app:1", True),
        ("*/b*d", "me/abcd", False),
        ("a?c", "a/c", False),
        ("[a-c]pp:[^0-9]*", "app:x1", True),
        ("[a-c]pp:[^0-9]*", "app:11", False),
        ("[z-a]pp", "app:1", False),
        ("[^z-a]pp", "app:1", True),
        ("[\\]a]pp", "app:1", True),
        ("\\app", "app:1", True),
        ("app:1.", "app:12", False),
        ("*x/y*z", "ax/yz", True),
        ("*a*ab", "aab", True),
        ("", "app", False),
    ],
)
def test_patterns(pattern: str, name: str, wanted: bool) -> None:
    assert fits(pattern, name) is wanted


@pytest.mark.parametrize("pattern", ["[", "[]", "[]a]", "[-]", "[x-]", "[-x]", "[a", "a\\", "[^]", "[a-\\", "ok*[a-]"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match="syntax error in pattern"):
        Pattern(pattern)


@given(st.text(alphabet="ab/*?", max_size=9), st.text(alphabet="ab/", min_size=1, max_size=9))
def test_means_what_its_characters_mean(pattern: str, path: str) -> None:
    @functools.cache
    def meant(p: int, n: int) -> bool:
        if p == len(pattern):
            return n == len(path)
        if pattern[p] == "*":
            return meant(p + 1, n) or (n < len(path) and path[n] != "/" and meant(p, n + 1))
        return (
            n < len(path) and (pattern[p] == path[n] or (pattern[p] == "?" and path[n] != "/")) and meant(p + 1, n + 1)
        )

    assert Pattern(pattern).matches(Reference("docker.io", path)) is meant(0, 0)


def test_no_pattern_takes_long() -> None:
    names = [parse_reference("a" * 240 + f":{tag}") for tag in range(200)]
    for text in ("*a" * 100 + "b", "a*" * 100 + "b", "*?" * 100 + "b", "*[ab]" * 100 + "c", "*" * 60_000 + "b"):
        assert not matches_any([Pattern(text)], names)  # longer than anybody lives, where each star looks back
