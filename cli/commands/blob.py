"""Configs and secrets: create, ls, inspect, rm. The two differ in name and in whether the payload is shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import BinaryIO

import click

from cli import output
from cli.client import Engine
from cli.commands.node import each
from cli.filters import parse_filters
from cli.values import key_values

COLUMNS = {"ID": "ID", "Name": "NAME", "CreatedAt": "CREATED", "UpdatedAt": "UPDATED"}


def _group(word: str) -> click.Group:
    path = f"/{word}s"

    @click.group(word, help=f"Manage {word}s.")
    def group() -> None:
        pass

    @group.command(help=f"Create a {word} from a file or STDIN (-).")
    @click.argument("name", metavar=word.upper())
    @click.argument("file", type=click.File("rb"))
    @click.option("-l", "--label", multiple=True, help=f"{word.capitalize()} labels")
    @click.option("--template-driver", default="", help="Template driver")
    @click.pass_obj
    def create(engine: Engine, name: str, file: BinaryIO, label: Sequence[str], template_driver: str) -> None:
        spec = {"Name": name, "Labels": key_values(label), "Data": base64.b64encode(file.read()).decode()}
        if template_driver:
            spec["Templating"] = {"Name": template_driver}
        output.write(engine.post(f"{path}/create", spec)["ID"])

    @group.command(help=f"List {word}s.")
    @click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
    @click.option("--format", "form", default="", help="Format output using a custom template")
    @click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
    @click.pass_obj
    def ls(engine: Engine, filters: Sequence[str], form: str, quiet: bool) -> None:
        found = sorted(engine.list(path, parse_filters(filters)), key=lambda entry: str(entry["Spec"]["Name"]))
        rows = [
            {
                "ID": entry["ID"],
                "Name": entry["Spec"]["Name"],
                "CreatedAt": f"{output.age(entry['CreatedAt'])} ago",
                "UpdatedAt": f"{output.age(entry['UpdatedAt'])} ago",
                "Labels": ",".join(f"{k}={v}" for k, v in sorted((entry["Spec"].get("Labels") or {}).items())),
            }
            for entry in found
        ]
        output.listing(rows, COLUMNS, form=form, quiet=quiet)

    @group.command(help=f"Display detailed information on one or more {word}s.")
    @click.argument("names", nargs=-1, required=True, metavar=f"{word.upper()}...")
    @click.option("-f", "--format", "form", default="", help="Format output using a custom template")
    @click.option("--pretty", is_flag=True, help="Print the information in a human friendly format")
    @click.pass_obj
    def inspect(engine: Engine, names: Sequence[str], form: str, pretty: bool) -> None:
        found = [engine.get(f"{path}/{name}") for name in names]
        output.inspect(found, form, _pretty if pretty else None)

    @group.command(help=f"Remove one or more {word}s.")
    @click.argument("names", nargs=-1, required=True, metavar=f"{word.upper()}...")
    @click.pass_obj
    def rm(engine: Engine, names: Sequence[str]) -> None:
        each(names, lambda name: engine.delete(f"{path}/{name}"))

    return group


def _pretty(found: dict[str, object]) -> str:
    spec = found["Spec"]
    assert isinstance(spec, dict)
    lines = [f"ID:\t\t\t{found['ID']}", f"Name:\t\t\t{spec['Name']}"]
    if spec.get("Labels"):
        lines += ["Labels:", *(f" - {key}={value}" for key, value in sorted(spec["Labels"].items()))]
    lines += [f"Created at:            \t{found['CreatedAt']}", f"Updated at:            \t{found['UpdatedAt']}"]
    if "Data" in spec:
        lines += ["Data:", base64.b64decode(spec["Data"]).decode(errors="replace")]
    return "\n".join(lines)


config = _group("config")
secret = _group("secret")
