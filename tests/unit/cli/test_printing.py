"""What the command prints moves nobody's cursor, whatever the cluster's hosts and containers are called."""

from __future__ import annotations

import io
import json

import pytest

from cli import output
from cli.convergence import Line
from cli.main import main
from cli.progress import Display

EVIL = "x\x1b[2J\x9b31m\r\ny"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().out
    assert not any(char in text for char in "\x1b\x9b\r")
    return text


def test_a_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME", "ERROR"], [[EVIL, EVIL], ["a", "b"]])
    assert len(printed(capsys).splitlines()) == 3


@pytest.mark.parametrize("form", ["", "json", "{{.NAME}}", "table {{.NAME}}"])
def test_a_list_in_every_form(capsys: pytest.CaptureFixture[str], form: str) -> None:
    output.listing([{"ID": "i", "NAME": EVIL}], {"NAME": "NAME"}, form=form)
    text = printed(capsys)
    if form == "json":
        assert json.loads(text)["NAME"] == EVIL


@pytest.mark.parametrize("form", ["", "json", "{{.Name}}"])
def test_inspect_in_every_form(capsys: pytest.CaptureFixture[str], form: str) -> None:
    output.inspect(["a"], lambda name: {"Name": EVIL}, form)
    text = printed(capsys)
    if form != "{{.Name}}":
        found = json.loads(text)
        assert (found if isinstance(found, dict) else found[0])["Name"] == EVIL
    output.inspect(["a"], lambda name: {"Name": EVIL}, "", lambda value: f"Name:\t{value['Name']}\n")
    assert printed(capsys).startswith("Name:\t")


def test_colours_of_the_users_own_template_stay(capsys: pytest.CaptureFixture[str]) -> None:
    output.inspect(["a"], lambda name: {"Name": "x"}, "\x1b[1m{{.Name}}")
    assert capsys.readouterr().out == "\x1b[1mx\n"


def test_progress_and_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    Display(out).show([Line(key=EVIL, text=EVIL)])
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()
    monkeypatch.setattr("sys.argv", ["swarm", "--host", f"ftp://{EVIL}", "info"])
    with pytest.raises(SystemExit):
        main()
    assert not any(char in capsys.readouterr().err for char in "\x1b\x9b\r")
