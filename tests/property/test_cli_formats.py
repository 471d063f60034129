"""Any template over any JSON: a text or one TemplateError."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from base.gotemplate.faults import TemplateError
from cli.formats import render

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "B", "C"]), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{{- ",
            " -}}",
            ".",
            ".A",
            ".A.B",
            "$",
            "$x",
            ":=",
            "=",
            "|",
            "(",
            ")",
            ",",
            " ",
            "if ",
            "else ",
            "end",
        ),
        *(
            "range ",
            "with ",
            "break",
            "continue",
            "{{end}}",
            "{{else}}",
            "{{if .A}}",
            "{{range $i, $x := .A}}",
            "{{.}}",
        ),
        *(
            "json ",
            "index ",
            "len ",
            "slice ",
            "printf ",
            "print ",
            "join ",
            "split ",
            "pad ",
            "title ",
            "eq ",
            "lt ",
            "and ",
        ),
        *('"a"', '"%v %d %s %q %c %x"', "`b`", "'c'", "1", "-2", "0.5", "nil", "true", "/*", "*/", '"', "\\"),
    ]
)


@given(st.lists(WORDS | st.text(max_size=3), max_size=14).map("".join), JSON)
def test_gives_a_text_or_a_template_error(template: str, value: Any) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(render(template, value), str)


@given(st.lists(WORDS, min_size=1, max_size=8).map(" ".join), JSON)
def test_an_action_gives_a_text_or_a_template_error(inside: str, value: Any) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(render("{{" + inside + "}}", value), str)
