"""Texts of strangers on the way to somebody's terminal: what moves the cursor, colours, hides or reorders is taken out.

A host name, an error or a label can hold escape sequences, by which a terminal shows what is not there, and changes of
direction, by which a text reads otherwise than it is (CVE-2021-42574).
"""

from __future__ import annotations

_KEPT_IN_TEXTS = {ord("\n"), ord("\t")}
_SPACES = {*range(0x09, 0x0E), 0x85, 0x2028, 0x2029}
_CONTROLS = {
    *range(0x20),
    *range(0x7F, 0xA0),
    *_SPACES,
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # changes of direction
}
_LINE = {code: " " if code in _SPACES else None for code in _CONTROLS}
_TEXT = {code: change for code, change in _LINE.items() if code not in _KEPT_IN_TEXTS}
_ESCAPED = {code: f"\\u{code:04x}" for code in _CONTROLS - _KEPT_IN_TEXTS}


def one_line(text: str) -> str:
    """Without control characters; a break is a space."""
    return text if text.isprintable() else text.translate(_LINE)


def text_of_lines(text: str, *, but: str = "") -> str:
    """As ``one_line``, but for newlines and tabs, and for those control characters that ``but`` has."""
    if text.isprintable():
        return text
    kept = {ord(character) for character in but}
    return text.translate({code: change for code, change in _TEXT.items() if code not in kept} if but else _TEXT)


def json_text(document: str) -> str:
    """JSON with its control characters, which can only be in strings, written out as escapes."""
    return document if document.isprintable() else document.translate(_ESCAPED)
