"""What strangers write, on the way to a terminal."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from base.printable import json_text, one_line, text_of_lines

HOSTILE = "a\x1b[2Jb\x9b31mc\rd\ne\tf\x00g\x7fh\u202ei\u2066j\u2028k"


def test_a_line_has_no_control_character_and_no_change_of_direction() -> None:
    assert one_line(HOSTILE) == "a[2Jb31mc d e fghij k"
    assert one_line("größe 大 …") == "größe 大 …"


def test_a_text_keeps_its_lines_and_tabs_and_what_its_template_has() -> None:
    assert text_of_lines(HOSTILE) == "a[2Jb31mc d\ne\tfghij k"
    assert text_of_lines("\x1b[1mx\x07", but="\x1b[1m{{.Name}}") == "\x1b[1mx"


@given(st.text())
def test_nothing_that_moves_a_cursor_is_left_and_nothing_else_is_taken(text: str) -> None:
    assert not [char for char in one_line(text) if unicodedata.category(char) == "Cc"]
    if text.isprintable():
        assert one_line(text) == text_of_lines(text) == text


@given(st.dictionaries(st.text(), st.text()))
def test_json_says_the_same_without_them(value: dict[str, str]) -> None:
    document = json_text(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(document) == value
    assert not [char for char in document if unicodedata.category(char) == "Cc" and char != "\n"]
