"""Configs and secrets: create, ls, inspect, rm. The two differ in name and in whether the data is shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, BinaryIO

import click

from cli import output, values
from cli.client import EngineClient
from cli.commands.groups import Group, each
from cli.commands.node import labels
from cli.commands.options import FILTERS, FORMAT, FORMAT_OF_LIST, ONLY_IDS, PRETTY, checked
from cli.filters import parse_filters
from cli.values import key_values

COLUMNS = {
    "config": {"ID": "ID", "Name": "NAME", "CreatedAt": "CREATED", "UpdatedAt": "UPDATED"},
    "secret": {"ID": "ID", "Name": "NAME", "Driver": "DRIVER", "CreatedAt": "CREATED", "UpdatedAt": "UPDATED"},
}
DATA_BYTES_MAX = 1000 * 1024


def _group(word: str) -> click.Group:
    path = f"/{word}s"

    @click.group(word, cls=Group, help=f"Manage {word}s.")
    def group() -> None:
        pass

    @group.command(help=f"Create a {word} from a file or STDIN (-).")
    @click.argument("name", metavar=word.upper())
    @click.argument("file", type=click.File("rb"))
    @click.option("-l", "--label", multiple=True, type=checked(values.label), help=f"{word.capitalize()} labels")
    @click.option("--template-driver", default="", help="Template driver")
    @click.pass_obj
    def create(engine: EngineClient, name: str, file: BinaryIO, label: Sequence[str], template_driver: str) -> None:
        # One byte more than is allowed: the daemon refuses it in its own words, whatever the file's size.
        data = file.read(DATA_BYTES_MAX + 1)
        spec = {"Name": name, "Labels": key_values(label), "Data": base64.b64encode(data).decode()}
        if template_driver:
            spec["Templating"] = {"Name": template_driver}
        output.write(engine.post(f"{path}/create", spec)["ID"])

    @group.command(help=f"List {word}s.")
    @FILTERS
    @FORMAT_OF_LIST
    @ONLY_IDS
    @click.pass_obj
    def ls(engine: EngineClient, filters: Sequence[str], form: str, quiet: bool) -> None:
        found = engine.list(path, parse_filters(filters))
        found.sort(key=lambda entry: output.natural(entry["Spec"]["Name"]))
        rows = [
            {
                "ID": entry["ID"],
                "Name": entry["Spec"]["Name"],
                **({"Driver": (entry["Spec"].get("Driver") or {}).get("Name", "")} if word == "secret" else {}),
                "CreatedAt": f"{output.age(entry['CreatedAt'])} ago",
                "UpdatedAt": f"{output.age(entry['UpdatedAt'])} ago",
                "Labels": ",".join(f"{k}={v}" for k, v in sorted((entry["Spec"].get("Labels") or {}).items())),
            }
            for entry in found
        ]
        output.listing(rows, COLUMNS[word], form=form, quiet=quiet)

    @group.command(help=f"Display detailed information on one or more {word}s.")
    @click.argument("names", nargs=-1, required=True, metavar=f"{word.upper()}...")
    @FORMAT
    @PRETTY
    @click.pass_obj
    def inspect(engine: EngineClient, names: Sequence[str], form: str, pretty: bool) -> None:
        shown = _pretty_config if word == "config" else _pretty_secret
        output.inspect(names, lambda name: engine.get(f"{path}/{name}"), form, shown if pretty else None)

    @group.command(help=f"Remove one or more {word}s.")
    @click.argument("names", nargs=-1, required=True, metavar=f"{word.upper()}...")
    @click.pass_obj
    def rm(engine: EngineClient, names: Sequence[str]) -> None:
        each(names, lambda name: engine.delete(f"{path}/{name}"))

    return group


def _pretty_config(found: dict[str, Any]) -> str:
    spec = found["Spec"]
    lines = [f"ID:\t\t\t{found['ID']}", f"Name:\t\t\t{spec['Name']}", *labels("Labels", spec.get("Labels"))]
    lines += [
        f"Created at:            \t{output.go_time(found['CreatedAt'])}",
        f"Updated at:            \t{output.go_time(found['UpdatedAt'])}",
        "Data:",
        base64.b64decode(spec.get("Data") or "").decode(errors="replace"),
    ]
    return "\n".join(lines)


def _pretty_secret(found: dict[str, Any]) -> str:
    spec = found["Spec"]
    lines = [f"ID:              {found['ID']}", f"Name:              {spec['Name']}"]
    lines += labels("Labels", spec.get("Labels"))
    lines += [
        f"Driver:            {(spec.get('Driver') or {}).get('Name', '')}",
        f"Created at:        {output.go_time(found['CreatedAt'])}",
        f"Updated at:        {output.go_time(found['UpdatedAt'])}",
    ]
    return "\n".join(lines)


config = _group("config")
secret = _group("secret")
