"""Values: what is printed reads back; what is read is a value or one ValueError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import service_spec, values
from cli.composefile.interpolation import interpolate
from cli.composefile.parse import parse
from cli.composefile.reader import read
from cli.composefile.source import ManifestError
from cli.stack.convert import convert
from cli.stack.names import Namespace


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_duration_reads_back(ns: int) -> None:
    assert values.duration_ns(values.duration_text(ns)) == ns


NOISE = st.text(max_size=20) | st.text("0123456789.:-/=,mskgtcpudhost\"' ", max_size=20)


@pytest.mark.parametrize(
    "read",
    [
        *(values.duration_ns, values.size_bytes, values.nano_cpus, values.port, values.mount, values.ulimit),
        *(values.file_reference, values.network, values.words, values.environment_file, values.ratio),
        *(service_spec.preference, service_spec.generic_resource, service_spec.host_entry),
    ],
)
@given(text=NOISE)
def test_a_flag_is_a_value_or_one_error(read: Callable[[str], Any], text: str) -> None:
    with contextlib.suppress(ValueError):
        read(text)


VARIABLES = {"A": "1", "B": "", "LONG": "x" * 100}
PIECES = st.sampled_from(["$", "${", "}", "A", "B", "LONG", "C", ":-", "-", ":?", "?", ":+", "+", "$$", "{", " ", "é"])


@given(st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=30))
def test_interpolation_is_total(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(interpolate(text, VARIABLES), str)


@given(st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=30))
def test_text_without_variables_stays(text: str) -> None:
    assert interpolate(text, {}) == text
    assert interpolate(text.replace("x", "$$"), {}) == text.replace("x", "$")


SERVICE_KEYS = st.sampled_from(
    [
        *("image", "command", "environment", "env_file", "labels", "ports", "volumes", "configs", "secrets", "ulimits"),
        *("healthcheck", "logging", "deploy", "sysctls", "extra_hosts", "tmpfs", "init", "tty", "user", "dns"),
        *(
            "replicas",
            "resources",
            "limits",
            "placement",
            "preferences",
            "constraints",
            "restart_policy",
            "update_config",
        ),
        *("target", "published", "source", "type", "test", "mode", "spread", "generic_resources"),
    ]
)
TREES = st.recursive(
    st.sampled_from(["null", "1", "-1", "x", "0440", "true", "'1:2'", "a:b:c", "./x", "5s", "${A}", "~", "0.5"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
        | st.dictionaries(SERVICE_KEYS, inner, max_size=4).map(
            lambda found: "{" + ", ".join(f"{key}: {item}" for key, item in found.items()) + "}"
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(SERVICE_KEYS, TREES, max_size=5))
def test_a_stack_file_is_a_stack_or_one_error_with_its_line(service: dict[str, str]) -> None:
    body = ", ".join(f"{key}: {item}" for key, item in service.items())
    text = (
        "services:\n  web: {" + body + "}\nconfigs:\n  x: {content: a}\nsecrets:\n  x: {content: a}\nvolumes: {x: }\n"
    )
    refusal = refused(lambda: convert(read(parse(text, "f.yml", Path(), VARIABLES), VARIABLES), Namespace("s")))
    assert refusal.startswith("f.yml:")


def refused(act: Callable[[], object]) -> str:
    """The refusal's text, or that of none."""
    try:
        act()
    except ManifestError as error:
        return str(error)
    return "f.yml: fine"


@given(st.text(max_size=60) | st.text("{}[]:&*<,- \nab!|>'\"?#%@`", max_size=60))
def test_any_text_is_a_source_or_one_error(text: str) -> None:
    assert refused(lambda: parse(text, "f.yml", Path(), VARIABLES)).startswith("f.yml:")
