"""Go templates of services (features A10.13, A10.17)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.gotemplate.faults import TemplateError
from base.gotemplate.values import Labels
from worker.agent.templates import expand

FIELDS: dict[str, object] = {
    "Service": {"ID": "s1", "Name": "web", "Labels": Labels({"zone": "a", "com.example.tier": "front"})},
    "Node": {"ID": "n1", "Hostname": "host", "Platform": {"OS": "linux", "Architecture": "x86_64"}},
    "Task": {"ID": "t1", "Name": "web.2.t1", "Slot": "2"},
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("", ""),
        ("S={{.Task.Slot}}", "S=2"),
        ("{{ .Node.Hostname }}-{{.Service.Name}}", "host-web"),
        ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
        ("{{.Service.Labels.zone}}", "a"),
        ('{{index .Service.Labels "com.example.tier"}}', "front"),
        ('{{index .Service.Labels "missing"}}', ""),
        ('{{if eq .Task.Slot "2"}}two{{else}}other{{end}}', "two"),
        ('{{if eq .Task.Slot "1"}}one{{else if eq .Task.Slot "2"}}two{{else}}other{{end}}', "two"),
        ("{{with .Node}}{{.Hostname}}/{{$.Task.Slot}}{{end}}", "host/2"),
        ('{{.Task.Slot | printf "%s-%q" "a"}}', 'a-"2"'),
        ('{{printf "%s.%v" (print .Service.Name) .Task.Slot}}', "web.2"),
        ("a  {{- .Task.Slot -}}  b", "a2b"),
        ("a{{/* nothing */}}b", "ab"),
        ("{{`raw {{ text`}}", "raw {{ text"),
        ('{{"a\\tb\\u00e9"}}', "a\tbé"),
        ("{{len .Service.Labels}}", "2"),
        ("{{not .Task.Slot}} {{and 1 0}} {{or 0 3}}", "false 0 3"),
        ("{{(index .Service.Labels `zone`) | len}}", "1"),
        ("}} alone {", "}} alone {"),
    ],
)
def test_expansion(text: str, wanted: str) -> None:
    assert expand(text, FIELDS) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{.Task.Slot", "unclosed action"),
        ("{{.Task.Planet}}", "can't evaluate field Planet"),
        ("{{.Task.Slot.More}}", "can't evaluate field More"),
        ("{{.Service.Labels.missing}}", 'no entry for key "missing"'),
        ("{{frobnicate}}", 'function "frobnicate" not defined'),
        ('{{env "A"}}', 'function "env" not defined'),
        ("{{if .Task.Slot}}x", "without {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{range .Service.Labels}}x{{end}}", "not supported"),
        ("{{}}", "missing value"),
        ("{{.Task.Slot | }}", "missing value"),
        ("{{(.Task.Slot}}", "unclosed left paren"),
        ("{{.Task.Slot)}}", "unexpected ')'"),
        ("{{.Task.Slot 1}}", "can't give argument"),
        ("{{not 1 2 3}}", "wrong arguments for not"),
        ("{{&}}", "unexpected '&'"),
        ('{{"a\\qb"}}', "bad string"),
        ("{{" + "(" * 60 + "1" + ")" * 60 + "}}", "nested deeper"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=r"^.*$") as refused:
        expand(text, FIELDS)
    assert reason in str(refused.value)


def test_functions_of_payloads() -> None:
    assert expand('{{ secret "pw" }}!', FIELDS, {"secret": lambda name: f"<{name}>"}) == "<pw>!"


PIECES = st.sampled_from(
    [
        "{{",
        "}}",
        "{{-",
        "-}}",
        ".Task.Slot",
        "if ",
        "else",
        "end",
        "with ",
        "(",
        ")",
        "|",
        '"',
        "`",
        " ",
        "a",
        "$",
        "/*",
        "*/",
        "index ",
        "9",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=50))
def test_any_text_gives_text_or_one_kind_of_error(text: str) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(expand(text, FIELDS), str)
