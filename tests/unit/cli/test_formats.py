"""``--format`` templates against Go's text/template."""

from __future__ import annotations

from typing import Any

import pytest

from base.gotemplate.faults import TemplateError
from cli.formats import render

VALUE: dict[str, Any] = {
    "Name": "web",
    "N": 3,
    "F": 0.5,
    "Yes": True,
    "Null": None,
    "Labels": {"b": "2", "a": "1"},
    "List": ["x", "y", "z"],
    "Deep": {"Er": {"Est": "bottom"}},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.Name}}/{{.Deep.Er.Est}}", "web/bottom"),
        ("{{json .Labels}}", '{"b":"2","a":"1"}'),
        ("{{.Labels}} {{.List}} {{.Null}} {{.Yes}} {{.F}}", "map[a:1 b:2] [x y z] <no value> true 0.5"),
        ("a {{- .N -}} b", "a3b"),
        ("{{- /* a comment */ -}} x", "x"),
        ('{{"}}"}}{{`{{`}}', "}}{{"),
        ("{{if .Absent}}y{{else if .Yes}}z{{else}}n{{end}}", "z"),
        ("{{if and .Yes (eq .N 3)}}y{{end}}", "y"),
        ("{{or .Absent .Name}}", "web"),
        ("{{not .Absent}}", "true"),
        ("{{with .Deep}}{{.Er.Est}}{{$.Name}}{{end}}", "bottomweb"),
        ("{{range .List}}{{.}},{{end}}", "x,y,z,"),
        ("{{range $i, $e := .List}}{{$i}}{{$e}}{{end}}", "0x1y2z"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 "),
        ("{{range .Absent}}{{else}}none{{end}}", "none"),
        ('{{range .List}}{{if eq . "y"}}{{continue}}{{end}}{{.}}{{end}}', "xz"),
        ('{{range .List}}{{if eq . "y"}}{{break}}{{end}}{{.}}{{end}}', "x"),
        ("{{$x := 1}}{{if .Yes}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ('{{join .List ", "}} {{upper .Name}} {{title "a b"}} {{len .List}}', "x, y, z WEB A B 3"),
        ('{{index .List 1}} {{index .Labels "a"}} {{index .Labels "none"}}', "y 1 "),
        ('{{(split "a:b" ":")}} {{slice .Name 1 2}}', "[a b] e"),
        ('{{.Name | printf "%5s|%-5s|%q|%03d" "a" "b" "c" | print}}', '    a|b    |"c"|%!d(str=web)'),
        ('{{printf "%d%% %.1f %v" .N .F .List}}', "3% 0.5 [x y z]"),
        ('{{pad .Name 1 2}}|{{truncate .Name 2}}|{{lower "AB"}}', " web  |we|ab"),
        ('{{print 1 2 "a" "b"}}{{println 1}}', "1 2ab1\n"),
        (
            '{{eq .N 1 3}} {{ne .Name "x"}} {{lt 1 2}} {{ge .F 0.5}} {{gt "b" "a"}} {{le 2 1}}',
            "true true true true true false",
        ),
    ],
)
def test_renders_as_go_does(template: str, text: str) -> None:
    assert render(template, VALUE) == text


@pytest.mark.parametrize(
    "template",
    [
        *(
            "{{",
            "{{}}",
            "{{end}}",
            "{{else}}",
            "{{if .Yes}}",
            "{{range .List}}{{else}}",
            "{{if}}{{end}}",
            "{{.Name",
            "{{break}}",
        ),
        *(
            "{{.Absent}}",
            "{{.Name.First}}",
            "{{nofunc}}",
            "{{.List.X}}",
            "{{$x}}",
            "{{$x = 1}}",
            "{{.Name .List}}",
            "{{(1}}",
            "{{1)}}",
        ),
        *(
            "{{index .List 9}}",
            "{{index .N 1}}",
            "{{len .N}}",
            "{{join .Name}}",
            "{{upper .N}}",
            "{{lt 1 .Name}}",
            "{{range .N}}{{end}}",
        ),
        *(
            '{{"unclosed}}',
            "{{'ab'}}",
            '{{template "x"}}',
            '{{define "x"}}{{end}}',
            "{{| json}}",
            "{{json |}}",
            "{{.a..b}}",
            "{{1 := 2}}",
        ),
        *(
            '{{printf "%99999999d" 1}}',
            "{{pad .Name 99999999 0}}",
            "{{slice .Name 2 1}}",
            '{{"\\xzz"}}',
            '{{"\\ud800"}}',
            "{{and}}",
            "{{json}}",
        ),
        "{{" + "(" * 500 + "1" + ")" * 500 + "}}",
        "{{if .Yes}}" * 500 + "{{end}}" * 500,
        "{{if .Yes}}a" + "{{else if .Yes}}b" * 3000 + "{{end}}",
    ],
)
def test_a_wrong_template_gives_one_error(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, VALUE)
    assert "\n" not in str(caught.value).strip()
