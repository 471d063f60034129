"""What the dialects of the Go-template engine have in common, and what each may choose."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from base.gotemplate.dialect import DEFINITIONS, LOOPS, Dialect
from base.gotemplate.engine import render
from base.gotemplate.faults import PARSING, RUNNING, TemplateError
from base.gotemplate.functions import FUNCTIONS
from base.gotemplate.values import Budget, Labels

LENIENT = Dialect(functions=FUNCTIONS)
STRICT = dataclasses.replace(LENIENT, missing_is_empty=False)
VALUE: dict[str, Any] = {"A": {"B": "b"}, "Name": "web", "Labels": Labels({"zone": "a"})}


def refusal(template: str, dialect: Dialect = LENIENT, value: Any = VALUE) -> str:
    with pytest.raises(TemplateError) as refused:
        render(template, value, dialect)
    return str(refused.value)


def test_a_field_of_parentheses_stands_close_to_them() -> None:
    assert render("{{print (index .A `B`).Name}}", {"A": {"B": {"Name": "n"}}}, LENIENT) == "n"
    assert render('{{printf "%s %s" (print .A.B) .Name}}', VALUE, LENIENT) == "b web"


@pytest.mark.parametrize("template", ["{{/* c */}}x", "{{- /* c */ -}} x", "{{ /* c */ }}x", "{{/* {{ */}}x"])
def test_comments_are_nothing(template: str) -> None:
    assert render(template, VALUE, LENIENT) == "x"


def test_spaces_before_a_trim_marker_are_no_matter() -> None:
    assert render("a  {{-  .Name   -}}  b", VALUE, LENIENT) == "awebb"


@pytest.mark.parametrize("template", ['{{"\\d"}}', '{{"\\xg0"}}', '{{"\\ud800"}}'])
def test_a_string_has_gos_escapes_only(template: str) -> None:
    assert refusal(template) == "invalid syntax"


def test_a_word_that_is_no_name_is_refused_for_its_first_odd_character() -> None:
    assert refusal("{{na-me}}") == "unexpected '-' in command"
    assert refusal("{{&}}") == "unexpected '&' in command"


def test_and_and_or_stop_at_the_operand_that_decides() -> None:
    assert render('{{or .Name (index .Name 99)}}{{and "" (index .Name 99)}}', VALUE, LENIENT) == "web"


def test_a_key_that_is_missing_is_empty_or_an_error() -> None:
    template = "{{if .A.None}}yes{{else}}no{{end}}"
    assert render(template, VALUE, LENIENT) == "no"
    assert refusal(template, STRICT) == "can't evaluate field None"
    assert refusal("{{if .Labels.none}}{{end}}", STRICT) == 'map has no entry for key "none"'
    assert refusal("{{.A.None}}", LENIENT) == 'map has no entry for key "None"'


def test_what_a_dialect_does_not_serve_it_refuses() -> None:
    small = dataclasses.replace(LENIENT, unserved=DEFINITIONS | LOOPS, has_variables=False)
    assert refusal("{{range .A}}{{end}}", small) == "{{range}} is not served"
    assert refusal('{{$x := "a"}}', small) == "unexpected ':' in command"
    assert refusal("{{upper .Name}}", dataclasses.replace(LENIENT, functions={})) == "function 'upper' not defined"


def test_nesting_and_output_have_bounds() -> None:
    shallow = dataclasses.replace(LENIENT, depth_max=3)
    nested = "{{if .Name}}" * 3 + "x" + "{{end}}" * 3
    assert render(nested, VALUE, shallow) == "x"
    assert refusal("{{if .Name}}" + nested + "{{end}}", shallow) == "nested too deeply"
    assert refusal("{{((((1))))}}", shallow) == "nested too deeply"


def doubled(times: int) -> str:
    return "{{with print .Name .Name}}" + "{{with print . .}}" * times + "{{.}}" + "{{end}}" * (times + 1)


def made_of(template: str, characters_max: int) -> int:
    """How much memory a refused template took, in bytes."""
    dialect = dataclasses.replace(LENIENT, characters_max=characters_max)
    tracemalloc.start()
    try:
        assert refusal(template, dialect) == "output too large"
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "template",
    [
        doubled(50),
        "{{.Name}}" * 4_000,
        "{{with printf `%1000s` .Name}}" + "{{print" + " ." * 2_000 + "}}{{end}}",
        "{{with printf `%1000s` .Name}}" + "{{println" + " ." * 2_000 + "}}{{end}}",
        "{{with printf `%1000s` .Name}}" + "{{printf `" + "%s" * 2_000 + "`" + " ." * 2_000 + "}}{{end}}",
        "{{with printf `%1000s` .Name}}" + "{{printf ``" + " ." * 2_000 + "}}{{end}}",
        "{{print .Labels" + " $.Labels" * 4_000 + "}}",
        "{{printf `" + "%9999d" * 2_000 + "`" + " 1" * 2_000 + "}}",
        "{{with printf `%5000s` .Name}}{{join (split . ` `) .}}{{end}}",
        "{{$x := printf `%9000s` .Name}}{{range split $x ``}}{{$x = print $x $x}}{{end}}",
        "{{$x := printf `%9000s` .Name}}{{range split $x ``}}{{len $x}}{{end}}",
        "{{$x := split (printf `%9000s` .Name) ``}}" + "{{range $x}}" * 3 + "{{end}}" * 3,
    ],
    ids=lambda template: str(template[:40]),
)
def test_a_template_makes_no_more_than_its_budget(template: str) -> None:
    assert made_of(template, characters_max=40_000) < 16_000_000


def test_templates_may_share_a_budget() -> None:
    budget = Budget(1000)
    for _ in range(20):
        assert render("{{.Name}}", VALUE, LENIENT, budget) == "web"
    with pytest.raises(TemplateError, match="output too large"):
        render("x" * 800, VALUE, LENIENT, budget)


def test_actions_without_spaces_are_read_once_each() -> None:
    assert render("{{1}}" * 100_000, VALUE, LENIENT) == "1" * 100_000  # hours when each looks through the rest
    assert render("{{.Name}}}{{`}`}}{{}}".removesuffix("{{}}"), VALUE, LENIENT) == "web}}"


def test_an_error_quotes_no_more_than_it_needs() -> None:
    assert len(refusal("{{" + "x" * 100_000 + "}}")) < 300
    assert len(refusal("{{.A." + "x" * 100_000 + "}}")) < 300


def test_a_dialect_has_its_words_and_prefixes() -> None:
    words = {"unclosed_action": "no end in sight", "no_length": "len of what?"}
    dialect = dataclasses.replace(LENIENT, parse_prefix="parsing: ", run_prefix="running: ", words=words)
    assert refusal("{{.A", dialect) == "parsing: no end in sight"
    assert refusal("{{.Name", LENIENT) == "unclosed action"
    assert refusal("{{len 1}}", dialect) == "running: len of what?"


def test_every_fault_has_one_kind() -> None:
    assert not set(PARSING) & set(RUNNING)


def test_the_engine_imports_nothing_that_the_cli_would_wait_for() -> None:
    script = "import sys; before = set(sys.modules); import base.gotemplate.engine; print(*set(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "structlog", "msgspec", "grpc", "typing_extensions"} & set(found)
    assert not heavy
    assert len(found) < 60, sorted(found)
