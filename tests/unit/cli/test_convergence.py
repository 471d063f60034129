"""Convergence by a clock moved by hand, and how it is drawn."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from cli.convergence import Convergence, Line
from cli.progress import Display, watch_convergence
from tests.unit.cli import samples

NODE = samples.node(1, "host-1")
UP = {NODE["ID"]}


def texts(lines: list[Line]) -> list[str]:
    return [f"{line.key}: {line.text}" for line in lines if not line.step]


def test_a_replicated_service_converges_after_its_monitor_period() -> None:
    service = samples.service(1, "web", replicas=2)
    watched = Convergence(service["ID"])
    one = samples.task("t1", service, 1, NODE)
    waiting = samples.task("t2", service, 2, NODE, "preparing", DesiredState="running")
    assert texts(watched.observe(service, [one, waiting], UP, 0.0))[:1] == ["overall progress: 0 out of 2 tasks"]
    both = [one, samples.task("t2", service, 2, NODE)]
    said = texts(watched.observe(service, both, UP, 1.0))
    assert said == [
        "overall progress: 2 out of 2 tasks",
        "verify: Waiting 6 seconds to verify that tasks are stable...",
    ]
    assert texts(watched.observe(service, both, UP, 4.0)) == [
        "verify: Waiting 3 seconds to verify that tasks are stable..."
    ]
    assert not watched.done
    assert texts(watched.observe(service, both, UP, 6.0)) == [f"verify: Service {service['ID']} converged"]
    assert watched.done


def test_a_failure_while_it_is_verified_begins_anew() -> None:
    service = samples.service(1, "web", replicas=1)
    watched = Convergence("web")
    task = samples.task("t1", service, 1, NODE)
    watched.observe(service, [task], UP, 0.0)
    failed = samples.task("t1", service, 1, NODE, "failed")
    failed["Status"]["Err"] = "task: non-zero exit (1)\nmore"
    said = texts(watched.observe(service, [failed], UP, 3.0))
    assert "1/1: task: non-zero exit (1) more" in said
    assert said[-1] == "verify: Detected task failure"
    watched.observe(service, [task], UP, 4.0)
    watched.observe(service, [task], UP, 8.0)
    assert not watched.done
    watched.observe(service, [task], UP, 9.0)
    assert watched.done


def test_a_task_on_a_node_that_is_down_does_not_count() -> None:
    service = samples.service(1, "web", replicas=1)
    said = texts(Convergence("web").observe(service, [samples.task("t1", service, 1, NODE)], set(), 0.0))
    assert said[-1] == "overall progress: 0 out of 1 tasks"


def test_a_global_service_waits_for_its_first_tasks() -> None:
    service = samples.service(1, "agent", replicas=None)
    watched = Convergence("agent")
    assert texts(watched.observe(service, [], UP, 0.0)) == ["overall progress: waiting for new tasks"]
    said = texts(watched.observe(service, [samples.task("t1", service, 0, NODE)], UP, 1.0))
    assert "overall progress: 1 out of 1 tasks" in said


@pytest.mark.parametrize(("state", "words"), [("paused", "update"), ("rollback_paused", "rollback")])
def test_a_pause_is_an_error(state: str, words: str) -> None:
    service = samples.service(1, "web", UpdateStatus={"State": state, "Message": "too many failures"})
    with pytest.raises(click.ClickException, match=f"service {words} paused: too many failures"):
        Convergence("web").observe(service, [], UP, 0.0)


def test_a_rollback_is_told_at_its_start_and_at_its_end() -> None:
    service = samples.service(1, "web", replicas=1, UpdateStatus={"State": "rollback_started", "Message": "because"})
    watched = Convergence("web")
    task = samples.task("t1", service, 1, NODE)
    said = texts(watched.observe(service, [], UP, 0.0))
    assert said[:2] == ["rollback: because", "overall progress: rolling back update: 0 out of 1 tasks"]
    service["UpdateStatus"] = {"State": "rollback_completed", "Message": "rollback completed"}
    watched.observe(service, [task], UP, 1.0)
    assert texts(watched.observe(service, [task], UP, 6.0)) == [
        "verify: Service web converged",
        "rollback: rollback completed",
    ]


def test_zero_replicas_converge() -> None:
    service = samples.service(1, "web", replicas=0)
    watched = Convergence("web")
    watched.observe(service, [], UP, 0.0)
    watched.observe(service, [], UP, 5.0)
    assert watched.done


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_line_a_change_and_no_bars() -> None:
    out = io.StringIO()
    display = Display(out)
    display.show([Line("a", "1"), Line("b", "running", 9)])
    display.show([Line("a", "1"), Line("a", "2")])
    assert out.getvalue() == "a: 1\na: 2\n"


def test_a_terminal_is_redrawn_in_place() -> None:
    out = Terminal()
    display = Display(out)
    display.show([Line("a", "1"), Line("b", "running", 9)])
    display.show([Line("a", "2")])
    assert out.getvalue() == f"a: 1\nb: running [{'=' * 50}]\n\x1b[2A\x1b[2K\ra: 2\x1b[2B\r"


class Engine:
    """A daemon of three answers; the clock moves when the watcher sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.service = samples.service(1, "web", replicas=1)

    def get(self, path: str) -> Any:
        return self.service

    def list(self, path: str, filters: Any = None) -> list[Any]:
        return [NODE] if path == "/nodes" else [samples.task("t1", self.service, 1, NODE)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_watching_ends_when_the_clock_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine()
    watch_convergence(engine, "web", clock=lambda: engine.now, sleep=engine.sleep)  # type: ignore[arg-type]  # a stand-in for the far side
    assert 5.0 <= engine.now < 5.5
    assert capsys.readouterr().out.splitlines()[-1] == "verify: Service web converged"


def test_ctrl_c_leaves_the_update_running(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    watch_convergence(Engine(), "web", clock=lambda: 0.0, sleep=interrupt)  # type: ignore[arg-type]  # as above
    assert capsys.readouterr().out.endswith("Use `swarm service ps web` to check progress.\n")
