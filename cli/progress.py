"""Waiting until a service has converged, told while it happens: redrawn on a terminal, a line a change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from base.printable import one_line, text_of_lines
from cli.client import EngineClient
from cli.convergence import STEPS, Convergence, Line

POLL_S = 0.2
BAR_WIDTH = 50


def watch_convergence(
    engine: EngineClient,
    service_id: str,
    *,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once every wanted task has run for the monitor period (A8.07), or the update has ended.

    Ctrl-C stops the watching, not the update: it says so and returns.

    Raises:
        click.ClickException: the update paused. RefusedError: the service is gone.
    """
    display = Display(sys.stdout, quiet=quiet)
    convergence = Convergence(service_id)
    try:
        while True:
            service = engine.get(f"/services/{service_id}")
            tasks = engine.list("/tasks", {"service": [service["ID"]], "_up-to-date": ["true"]})
            up_nodes = {node["ID"] for node in engine.list("/nodes") if node["Status"]["State"] != "down"}
            display.show(convergence.observe(service, tasks, up_nodes, clock()))
            if convergence.done:
                return
            sleep(POLL_S)
    except KeyboardInterrupt:
        display.say("Operation continuing in background.")
        display.say(f"Use `swarm service ps {service_id}` to check progress.")


class Display:
    """Draws lines, each with a key: in place on a terminal; elsewhere one more line when its text changes.

    Bars are drawn on terminals alone, as Docker does.
    """

    def __init__(self, out: TextIO, *, quiet: bool = False) -> None:
        self._out, self._quiet = out, quiet
        self._terminal = out.isatty()
        self._texts: dict[str, str] = {}

    def say(self, text: str) -> None:
        if not self._quiet:
            self._out.write(f"{text_of_lines(text)}\n")
            self._out.flush()

    def show(self, lines: list[Line]) -> None:
        """Draw what is new."""
        if self._quiet:
            return
        for line in lines:
            text = self._text(line)
            if self._texts.get(line.key) == text or (line.step and not self._terminal):
                continue
            if self._terminal:
                self._redraw(line.key, text)
            else:
                self._out.write(f"{text}\n")
            self._texts[line.key] = text
        self._out.flush()

    def _text(self, line: Line) -> str:
        bar = ""
        if line.step:
            full = BAR_WIDTH * line.step // STEPS
            bar = f" [{'=' * full}>{' ' * (BAR_WIDTH - full - 1)}]" if full < BAR_WIDTH else f" [{'=' * BAR_WIDTH}]"
        return one_line(f"{line.key}: {line.text}{bar}")

    def _redraw(self, key: str, text: str) -> None:
        """Up to the key's line, clear it, write it, and down again."""
        keys = list(self._texts)
        if key not in self._texts:
            self._out.write(f"{text}\n")
            return
        up = len(keys) - keys.index(key)
        self._out.write(f"\x1b[{up}A\x1b[2K\r{text}\x1b[{up}B\r")
