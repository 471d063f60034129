"""How the command prints: tables as Docker's tabwriter lays them out, ages, sizes, ``--format``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from cli.gotemplate import TemplateError, render

MIN_WIDTH = 10
PADDING = 3
SHORT_ID = 12


def write(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def short(identifier: str, *, no_trunc: bool = False) -> str:
    """The first twelve characters, without ``sha256:``."""
    return identifier if no_trunc else identifier.removeprefix("sha256:")[:SHORT_ID]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns at least ten wide, three spaces apart, the last one unpadded."""
    lines = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(MIN_WIDTH, max(len(line[i]) for line in lines) + PADDING) for i in range(len(headers))]
    for line in lines:
        write("".join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)) + line[-1])


def listing(
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str],
    *,
    form: str = "",
    quiet: bool = False,
    quiet_key: str = "ID",
) -> None:
    """A list command's answer.

    Args:
        rows: one mapping a row, keyed as ``--format`` names the values.
        columns: key to heading, in order, for the table.
        form: ``--format``: "", "table", "table TEMPLATE", "json" or a template.
        quiet: only ``quiet_key``, a line each.
    """
    if quiet:
        for row in rows:
            write(row[quiet_key])
    elif form in ("", "table"):
        table(list(columns.values()), ([row[key] for key in columns] for row in rows))
    elif form == "json":
        for row in rows:
            write(json.dumps(row, separators=(",", ":")))
    elif form.startswith("table "):
        template = _unescape(form.removeprefix("table "))
        heads = {key: columns.get(key, key.upper()) for row in rows[:1] or [columns] for key in row}
        table(_cells(template, heads), (_cells(template, row) for row in rows))
    else:
        for row in rows:
            write(apply(_unescape(form), row))


def _cells(template: str, row: Mapping[str, str]) -> list[str]:
    return apply(template, row).split("\t")


def _unescape(text: str) -> str:
    return text.replace("\\t", "\t").replace("\\n", "\n")


def apply(template: str, value: Any) -> str:
    """Render a template, or end the command with its error."""
    try:
        return render(template, value)
    except TemplateError as error:
        raise click.ClickException(str(error)) from error


def inspect(found: Sequence[Any], form: str, pretty: Callable[[Any], str] | None = None) -> None:
    """What inspect commands print: JSON, a template's text for each, or the pretty form."""
    if pretty is not None:
        write("\n".join(pretty(value) for value in found))
    elif form in ("", "json"):
        write(json.dumps(found, indent=4, ensure_ascii=False))
    else:
        for value in found:
            write(apply(_unescape(form), value))


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time with any number of fractional digits; None for Go's zero time and for nothing."""
    if not text or text.startswith("0001-01-01"):
        return None
    head, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(head).replace(
        tzinfo=UTC, microsecond=int((fraction + "000000")[:6]) if fraction.isdecimal() else 0
    )


def age(text: str, now: datetime | None = None) -> str:
    """ "3 minutes" since a time in the API's form (go-units HumanDuration); "" when there is none."""
    then = parse_time(text)
    return "" if then is None else human_duration(((now or datetime.now(UTC)) - then).total_seconds())


def human_duration(seconds: float) -> str:
    """Approximate duration in words, as docker/go-units HumanDuration."""
    whole = int(seconds)
    hours = round(seconds / 3600)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if int(seconds / 60) == 1:
        return "About a minute"
    if int(seconds / 60) < 60:
        return f"{int(seconds / 60)} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def human_size(size_bytes: float) -> str:
    """Decimal units with up to four digits, as docker/go-units HumanSize ("1.23MB")."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size_bytes < 1000 or unit == "PB":
            return f"{size_bytes:.3g}{unit}" if size_bytes < 1000 else f"{size_bytes:.4g}{unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def binary_size(size_bytes: float) -> str:
    """Binary units ("1.5GiB"), as docker/go-units BytesSize."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            return f"{size_bytes:.4g}{unit}"
        size_bytes /= 1024
    raise AssertionError("unreachable")
