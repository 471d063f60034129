"""``stack config``: Docker's form of a file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cli.composefile.yaml_text import yaml_text
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_engine import FakeEngine


def shown(run: Run, tmp_path: Path, text: str, *flags: str) -> str:
    """What ``stack config`` prints of a file that it takes."""
    file = tmp_path / "s.yml"
    file.write_text(text)
    ran = run("stack", "config", *flags, "-c", str(file))
    assert (ran.code, ran.err) == (0, "")
    return ran.out


def test_config_prints_what_an_env_file_brings_in(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("OUTER", "set")
    (tmp_path / "web.env").write_text("A=b\nC=1\nOVER=lost\n")
    text = "services:\n  w:\n    image: i\n    env_file: web.env\n    environment: [OVER=won, NOWHERE, OUTER=]\n"
    assert shown(run, tmp_path, text) == (
        'version: "3.13"\nservices:\n  w:\n    environment:\n      A: b\n      C: "1"\n      NOWHERE: null\n'
        f"      OUTER: set\n      OVER: won\n    env_file:\n      - {tmp_path}/web.env\n    image: i\n"
    )


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("secrets: [gone]", "secrets: [{source: gone}]"),
        ("configs: [{source: gone}]", "configs: [{source: gone}]"),
        ("volumes: ['gone:/x']", "volumes: [{type: volume, source: gone, target: /x}]"),
    ],
)
def test_what_the_file_does_not_define_is_shown_and_not_deployed(
    engine: FakeEngine, run: Run, tmp_path: Path, line: str, printed: str
) -> None:
    text = f"services:\n  w:\n    image: i\n    {line}\n"
    service = yaml.safe_load(shown(run, tmp_path, text))["services"]["w"]
    assert service == {"image": "i"} | yaml.safe_load(printed)
    ran = run("stack", "deploy", "-c", str(tmp_path / "s.yml"), "s")
    kind = line.partition(":")[0]
    assert ran.code == 1
    assert f"s.yml:4: services.w.{kind}.0: undefined {kind[:-1]} 'gone'" in ran.err
    assert not engine.asked


@pytest.mark.parametrize("line", ["nope: 1", "ports: ['${PORT}:80']", "deploy: {replicas: '${N}'}", "environment: 5"])
def test_config_without_interpolation_refuses_what_is_wrong_whatever_the_variables(
    run: Run, tmp_path: Path, line: str
) -> None:
    file = tmp_path / "s.yml"
    file.write_text(f"services:\n  w:\n    image: i:${{TAG}}\n    {line}\n")
    ran = run("stack", "config", "--skip-interpolation", "-c", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert f"{file}:4: services.w." in ran.err


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        *((text, f'"{text}"') for text in ("1.1", "08", "0o7", "1_000", "22:22:22", "2001-01-01", "0x1f", "1e3", ".5")),
        *((text, f'"{text}"') for text in ("-1", "0.", "~", "null", "y", "on", ".inf", "", "True")),
        *(
            (text, text)
            for text in ("1.1.1", "-a", "it's", "a,b", ":x", "60:80", "1.2.3.4:80", "1e", "é", "10.0.0.0/8")
        ),
        *((text, f"'{text}'") for text in ("#a", "a: b", " a", "- a", "*a", "{a}", "x:", "@a")),
    ],
)
def test_texts_are_quoted_as_by_docker(text: str, printed: str) -> None:
    assert yaml_text({"key": text}) == f"key: {printed}\n"


def test_a_text_of_many_lines_stays_one() -> None:
    assert yaml_text({"key": ["a\nb", "a\n"]}) == "key:\n  - |-\n    a\n    b\n  - |\n    a\n"


def test_config_prints_the_merged_file_with_and_without_its_variables(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAG", "1.10")
    (tmp_path / "a.yml").write_text("services:\n  web:\n    image: i:$TAG\n    labels: [a=b]\n")
    (tmp_path / "b.yml").write_text("services:\n  web:\n    labels: {c: d}\n")
    files = ("-c", str(tmp_path / "a.yml"), "-c", str(tmp_path / "b.yml"))
    ran = run("stack", "config", *files)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == ('version: "3.13"\nservices:\n  web:\n    image: i:1.10\n    labels:\n      a: b\n      c: d\n')
    assert "image: i:$TAG\n" in run("stack", "config", "--skip-interpolation", *files).out


@pytest.mark.parametrize(
    "line",
    [
        "ports: ['x']",
        "nope: 1",
        "deploy: {replicas: many}",
        "environment: 5",
        "restart: sometimes",
        "env_file: [missing.env]",
        "healthcheck: {test: [true, x]}",
    ],
)
def test_config_refuses_what_cannot_be_deployed(run: Run, tmp_path: Path, line: str) -> None:
    file = tmp_path / "f.yml"
    file.write_text(f"services:\n  web:\n    image: i\n    {line}\n")
    ran = run("stack", "config", "-c", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"{file}:4: ") or f"{file}:4: " in ran.err


@pytest.mark.parametrize("skip", [(), ("--skip-interpolation",)])
def test_config_makes_paths_absolute(run: Run, tmp_path: Path, skip: tuple[str, ...]) -> None:
    (tmp_path / "web.env").write_text("A=b\n")
    (tmp_path / "s.yml").write_text(
        "services:\n  w:\n    image: i\n    env_file: web.env\n    volumes: ['./a/../b:/t:ro', 'data:/data', '/c:/c',"
        " {type: bind, source: d, target: /d}]\nvolumes: {data: {}}\n"
        "configs: {c: {file: ./conf}}\nsecrets: {s: {file: sec}}\n"
    )
    ran = run("stack", "config", *skip, "-c", str(tmp_path / "s.yml"))
    assert (ran.code, ran.err) == (0, "")
    shown = yaml.safe_load(ran.out)
    service = shown["services"]["w"]
    sources = [mount["source"] for mount in service["volumes"]]
    assert sources == [f"{tmp_path}/b", "data", "/c", f"{tmp_path}/d"]
    assert service["env_file"] == [f"{tmp_path}/web.env"]
    assert [shown["configs"]["c"]["file"], shown["secrets"]["s"]["file"]] == [f"{tmp_path}/conf", f"{tmp_path}/sec"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version: '2'\nservices: {w: {image: i}}\n", "version: unsupported Compose file version: 2"),
        ("services: {w: {image: i, mem_limit: 5m}}\n", "services.w.mem_limit: set resource limits using"),
        ("services: {w: {image: i, extends: {service: x}}}\n", "services.w.extends: extends is not possible"),
        ("services: {'w w': {image: i}}\n", "services.w w: invalid service name"),
        ("services:\n", "services: must be a mapping"),
        ("services: {w: }\n", "services.w: must be a mapping"),
        ("volumes: {v: {external: true, driver: d}}\n", "volumes.v.driver: conflicts with external"),
        ("volumes: {v: {external: {name: a}, name: b}}\n", "volumes.v.external.name: conflicts with name"),
        ("secrets: {v: {external: {name: a}, name: b}}\n", "secrets.v.external.name: conflicts with name"),
    ],
)
def test_config_refuses_what_no_stack_may_have(run: Run, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "s.yml").write_text(text)
    ran = run("stack", "config", "-c", str(tmp_path / "s.yml"))
    assert (ran.code, ran.out) == (1, "")
    assert told in ran.err
