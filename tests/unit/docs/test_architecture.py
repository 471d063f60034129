"""docs/architecture.md: the floor plan is the one that is built, and its layers are those that import-linter holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from manager.store import KINDS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PLAN = PAGE.partition("## 2. The house")[2].split("```")[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PACKAGES: list[str] = SETTINGS["root_packages"]


def layers_of(sentence: str) -> list[str]:
    """The layers, top first, as a sentence of the page has them: ``Imports point down: `a | b` -> `c`.``"""
    line = next(line for line in PAGE.splitlines() if line.startswith(sentence))
    chain = line.removeprefix(sentence).strip()
    found = re.match(r"(?:`[^`]+`(?: -> )?)+", chain)
    assert found is not None
    return re.findall(r"`([^`]+)`", found[0])


def layer_contracts() -> list[dict[str, Any]]:  # Any: what TOML holds
    return [contract for contract in SETTINGS["contracts"] if contract["type"] == "layers"]


def test_packages_are_layered_as_the_page_says() -> None:
    order = layers_of("Imports point down:")
    assert {name for layer in order for name in layer.split(" | ")} == set(PACKAGES)
    for contract in layer_contracts():
        if "containers" in contract:
            continue
        position = [
            next(at for at, layer in enumerate(order) if set(held.split(" | ")) <= set(layer.split(" | ")))
            for held in contract["layers"]
        ]
        assert position == sorted(set(position)), contract["name"]


def test_the_managers_parts_are_layered_as_the_page_says() -> None:
    (contract,) = [contract for contract in layer_contracts() if contract.get("containers") == ["manager"]]
    assert contract["exhaustive"]
    assert layers_of("Inside `manager`:") == contract["layers"]


def folders_of_the_plan() -> dict[str, str]:
    """Folder -> what the plan says of it and of what is not below it."""
    found: dict[str, str] = {}
    package = folder = ""
    for line in PLAN.splitlines():
        if top := re.match(r"(\w+)/ ", line):
            package = folder = top[1]
        elif below := re.match(r"    (\w+)/ ", line):
            folder = f"{package}/{below[1]}"
        if folder:
            found[folder] = f"{found.get(folder, '')}{line}\n"
    return found


def test_every_folder_has_its_place_on_the_plan() -> None:
    built = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package, *(ROOT / package).iterdir())
        if path.is_dir() and path.name != "__pycache__"
    }
    assert {folder for folder in folders_of_the_plan() if folder.partition("/")[0] in PACKAGES} == built


def test_what_lies_beside_the_managers_parts_is_on_the_plan() -> None:
    named = {
        file
        for folder, text in folders_of_the_plan().items()
        if folder.startswith("manager")
        for file in re.findall(r"\w+\.py", text)
    }
    assert {path.name for path in (ROOT / "manager").glob("*.py")} - {"__init__.py"} <= named


def test_files_that_the_plan_names_are_there() -> None:
    """Those behind a folder's name in it, those on lines of their own in the package above."""
    named = [
        (folder, file) for folder, text in folders_of_the_plan().items() for file in re.findall(r"[a-z_0-9]+\.py", text)
    ]
    assert len(named) > 20
    places = {folder: [ROOT / folder, ROOT / folder.partition("/")[0]] for folder, _ in named}
    assert [(folder, file) for folder, file in named if not any((at / file).is_file() for at in places[folder])] == []


def test_the_objects_of_the_page_are_those_of_the_store() -> None:
    named = re.search(r"objects \(`([\w, ]+)`\) are protobuf messages", PAGE)
    assert named is not None
    assert set(named[1].split(", ")) == {kind.message.__name__ for kind in KINDS}
