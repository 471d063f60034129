"""How the command prints: tables as Docker's tabwriter lays them out, ages, sizes, ``--format``."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any  # Any: values of the API's JSON, as templates walk them

import click

from base.durations import human_duration
from base.printable import json_text, one_line, text_of_lines
from cli.client import RefusedError

MIN_WIDTH = 10
PADDING = 3
SHORT_ID = 12


def write(text: str, *, but: str = "") -> None:
    """To stdout, without control characters other than those in ``but``; see ``base.printable``."""
    text = text_of_lines(text, but=but)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def short(identifier: str, *, no_trunc: bool = False) -> str:
    """The first twelve characters, without ``sha256:``."""
    return identifier if no_trunc else identifier.removeprefix("sha256:")[:SHORT_ID]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns at least ten wide, three spaces apart, the last one unpadded."""
    lines = [list(headers), *([one_line(str(cell)) for cell in row] for row in rows)]
    count = max(len(line) for line in lines)
    lines = [line + [""] * (count - len(line)) for line in lines]
    widths = [max(MIN_WIDTH, max(len(line[i]) for line in lines) + PADDING) for i in range(count)]
    for line in lines:
        write("".join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)) + line[-1])


def listing(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    form: str = "",
    quiet: bool = False,
    headings: Mapping[str, str] | None = None,
) -> None:
    """A list command's answer.

    Args:
        rows: one mapping a row, keyed as ``--format`` names the values; the key "ID" is what ``quiet`` shows.
        columns: key to heading, in order, for the table.
        form: ``--format``: "", "table", "table TEMPLATE", "json" or a template.
        quiet: only the IDs, a line each; a template overrules it.
        headings: of values that only templates show.
    """
    if form in ("", "table") and quiet:
        for row in rows:
            write(row["ID"])
    elif form in ("", "table"):
        table(list(columns.values()), ([row[key] for key in columns] for row in rows))
    elif form == "json":
        for row in rows:
            write(_script_safe(json.dumps(row, separators=(",", ":"), ensure_ascii=False, sort_keys=True)))
    elif form.startswith("table"):
        template = _unescape(form.removeprefix("table").strip(" "))
        heads = {**{key: key.upper() for row in rows[:1] for key in row}, **columns, **(headings or {})}
        table(_cells(template, heads), (_cells(template, row) for row in rows))
    else:
        for row in rows:
            write(apply(_unescape(form), row) + "\n", but=form)


def _cells(template: str, row: Mapping[str, Any]) -> list[str]:
    return apply(template, row).split("\t")


def _unescape(text: str) -> str:
    return text.replace("\\t", "\t").replace("\\n", "\n")


def _script_safe(text: str) -> str:
    """JSON as Go's encoder writes it: fit to stand in a web page."""
    return json_text(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A sort key: runs of digits count as numbers ("host-9" before "host-10")."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(not part[0].isdecimal(), int(part[:18]) if part[0].isdecimal() else 0, part) for part in parts]


def ellipsis(text: str, width: int) -> str:
    """At most ``width`` columns, the last an ellipsis when something was cut; wide characters count two."""
    if sum(_columns(char) for char in text) <= width:
        return text
    kept = 0
    for index, char in enumerate(text):
        kept += _columns(char)
        if kept > width - 1:
            return text[:index] + "…"
    return text


def _columns(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def apply(template: str, value: Any) -> str:
    """Render a template, or end the command with its error."""
    # Imported when a template is given: a table alone starts 10 ms sooner.
    from base.gotemplate.faults import TemplateError
    from cli.formats import render

    try:
        return render(template, value)
    except TemplateError as error:
        raise click.ClickException(str(error)) from error


def inspect(
    names: Sequence[str], find: Callable[[str], Any], form: str, pretty: Callable[[Any], str] | None = None
) -> None:
    """What inspect commands do: show everything that was found, then tell what was not, with exit status 1.

    Args:
        find: the object of a name; raises RefusedError.
        form: ``--format``: "", "json" or a template.
        pretty: the text of one object, instead of ``form``.

    Raises:
        click.ClickException: the refusals, a line each.
    """
    if pretty is not None and form:
        raise click.ClickException("--format is incompatible with human friendly format")
    found, refusals = [], []
    for name in names:
        try:
            found.append(find(name))
        except RefusedError as error:
            refusals.append(str(error))
    if pretty is not None:
        for value in found:
            write(pretty(value) + "\n")
    elif form == "":
        write(json_text(json.dumps(found, indent=4, ensure_ascii=False)))
    elif form == "json":
        write(json_text(json.dumps(found, separators=(",", ":"), ensure_ascii=False)))
    else:
        texts = "".join(apply(_unescape(form), value) + "\n" for value in found)
        write(texts or "\n", but=form)
    if refusals:
        raise click.ClickException("\n".join(refusals))


_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?([Zz]|[-+]\d{2}:\d{2})?")


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time with any number of fractional digits; None for Go's zero time, and for what is no time."""
    match = _TIME.fullmatch(text)
    if match is None or text.startswith("0001-01-01"):
        return None
    day, clock, fraction, zone = match.groups()
    try:
        found = datetime.fromisoformat(f"{day}T{clock}{zone.replace('Z', '').replace('z', '') if zone else ''}")
    except ValueError:
        return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.replace(microsecond=int(f"{fraction or 0:0<6}"[:6]))


def go_time(text: str) -> str:
    """A time as Go prints it and Docker's pretty forms show it: "2026-01-02 03:04:05.12 +0000 utc"."""
    match = _TIME.fullmatch(text)
    if match is None:
        return text
    day, clock, fraction, zone = match.groups()
    part = f".{fraction.rstrip('0')}" if fraction and fraction.strip("0") else ""
    offset = "+0000 utc" if zone in (None, "Z", "z") else zone.replace(":", "")
    return f"{day} {clock}{part} {offset}"


def age(text: str, now: datetime | None = None) -> str:
    """ "3 minutes" since a time in the API's form (go-units HumanDuration); "" when there is none."""
    then = parse_time(text)
    return "" if then is None else human_duration(((now or datetime.now(UTC)) - then).total_seconds())


def human_size(size_bytes: float, digits: int = 4) -> str:
    """Decimal units with so many significant digits, as docker/go-units HumanSize ("1.235MB")."""
    return _scaled(size_bytes, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB"), digits)


def binary_size(size_bytes: float) -> str:
    """Binary units with four significant digits ("1.5GiB"), as docker/go-units BytesSize."""
    return _scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB"), 4)


def _scaled(value: float, base: int, units: Sequence[str], digits: int) -> str:
    """The value in the first unit that takes it below ``base``, as Go's %.Ng prints it."""
    step = 0
    while value >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    return re.sub(r"e([-+])(\d)$", r"e\g<1>0\2", f"{value:.{digits}g}") + units[step]
