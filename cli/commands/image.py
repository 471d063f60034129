"""Images of the local engine: ls, pull, load, import, inspect, tag, rm."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, TextIO  # Any: values of the API's JSON

import click

from base.durations import human_duration
from cli import output
from cli.client import EngineClient
from cli.commands.groups import Group, each
from cli.commands.options import FILTERS, FORMAT, FORMAT_OF_LIST
from cli.filters import parse_filters
from cli.images import familiar, with_tag

COLUMNS = {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE"}


@click.group(cls=Group)
def image() -> None:
    """Manage images."""


@image.command()
@click.option("-a", "--all", "every", is_flag=True, help="Show all images")
@FILTERS
@FORMAT_OF_LIST
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.pass_obj
def ls(engine: EngineClient, every: bool, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    """List images."""
    rows = []
    for found in engine.list("/images/json", parse_filters(filters), all=every):
        for repository, tag, digest in _names(found):
            rows.append(
                {
                    "Repository": repository,
                    "Tag": tag,
                    "Digest": digest,
                    "ID": output.short(found["Id"]) if not no_trunc else found["Id"],
                    "CreatedSince": _since(found["Created"]),
                    "Size": output.human_size(found["Size"], 3),
                }
            )
    output.listing(rows, COLUMNS, form=form, quiet=quiet, headings={"Digest": "DIGEST"})


def _names(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Repository, tag and digest of each row of an image; a digest gets one of its own where it has no tag."""
    tagged = [familiar(name).rpartition(":") for name in found.get("RepoTags") or () if name != "<none>:<none>"]
    rows = [(repository, tag, "<none>") for repository, _, tag in tagged]
    for name in found.get("RepoDigests") or ():
        repository, _, digest = name.partition("@")
        if repository != "<none>" and familiar(repository) not in {row[0] for row in rows}:
            rows.append((familiar(repository), "<none>", digest))
    return rows or [("<none>", "<none>", "<none>")]


def _since(created: int) -> str:
    from time import time

    return f"{human_duration(max(0.0, time() - created))} ago" if created > 0 else "N/A"


def _show(messages: Iterable[dict[str, Any]], *, quiet: bool = False, out: TextIO | None = None) -> None:
    """Progress of a pull or load, one line a change of status."""
    out = out or sys.stdout
    last: dict[str, str] = {}
    for message in messages:
        text = message.get("stream") or message.get("status", "")
        layer = message.get("id", "")
        if quiet or not text or (layer and last.get(layer) == text):
            continue
        last[layer] = text
        line = f"{layer}: {text}" if layer else text
        out.write(line if line.endswith("\n") else f"{line}\n")
        out.flush()


def pull_image(
    engine: EngineClient, name: str, platform: str = "", *, quiet: bool = False, out: TextIO | None = None
) -> None:
    """Have the engine pull an image, ``latest`` where the name has no tag. Raises: RefusedError."""
    query = {"fromImage": name, "platform": platform or None}
    if ":" not in name.rpartition("/")[2]:
        query["tag"] = "latest"
    _show(engine.messages("POST", "/images/create", params=query), quiet=quiet, out=out)


@image.command()
@click.argument("name", metavar="NAME[:TAG|@DIGEST]")
@click.option("--platform", default="", help="Set platform if server is multi-platform capable")
@click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output")
@click.pass_obj
def pull(engine: EngineClient, name: str, platform: str, quiet: bool) -> None:
    """Download an image from a registry."""
    if quiet:
        pull_image(engine, name, platform, quiet=True)
        output.write(_full_name(name))
        return
    if ":" not in name.rpartition("/")[2]:
        output.write("Using default tag: latest")
    pull_image(engine, name, platform)
    output.write(_full_name(name))


def _full_name(name: str) -> str:
    """The reference with registry and tag, as Docker's command ends a pull with."""
    host, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in host and ":" not in host and host != "localhost":
        name = f"docker.io/{name}"
    return with_tag(name)


@image.command()
@click.option(
    "-i", "--input", "file", type=click.File("rb"), default="-", help="Read from tar archive file, instead of STDIN"
)
@click.option("-q", "--quiet", is_flag=True, help="Suppress the load output")
@click.pass_obj
def load(engine: EngineClient, file: BinaryIO, quiet: bool) -> None:
    """Load an image from a tar archive or STDIN."""
    _show(engine.messages("POST", "/images/load", params={"quiet": quiet}, body=file))


@image.command("import")
@click.argument("file", type=click.File("rb"))
@click.argument("name", metavar="[REPOSITORY[:TAG]]", default="")
@click.option("-c", "--change", multiple=True, help="Apply Dockerfile instruction to the created image")
@click.pass_obj
def import_(engine: EngineClient, file: BinaryIO, name: str, change: Sequence[str]) -> None:
    """Import the contents from a tarball to create a filesystem image."""
    repository, tag = _split(name)
    query: dict[str, Any] = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": "\n".join(change) or None}
    _show(engine.messages("POST", "/images/create", params=query, body=file))


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@FORMAT
@click.pass_obj
def inspect(engine: EngineClient, names: Sequence[str], form: str) -> None:
    """Display detailed information on one or more images."""
    output.inspect(names, lambda name: engine.get(f"/images/{name}/json"), form)


@image.command()
@click.argument("source")
@click.argument("target")
@click.pass_obj
def tag(engine: EngineClient, source: str, target: str) -> None:
    """Create a tag TARGET that refers to SOURCE."""
    repository, name = _split(target)
    engine.post(f"/images/{source}/tag", repo=repository, tag=name)


def _split(name: str) -> tuple[str, str]:
    """Repository and tag; a colon before the last slash belongs to the registry's port."""
    folder, slash, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return f"{folder}{slash}{repository}", tag


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-f", "--force", is_flag=True, help="Force removal of the image")
@click.pass_obj
def rm(engine: EngineClient, names: Sequence[str], force: bool) -> None:
    """Remove one or more images."""
    each(names, lambda name: engine.delete(f"/images/{name}", force=force))
