"""Client histories of a real five-manager cluster under kills and cuts are linearizable (architecture section 4)."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from tests.linearizability import UNKNOWN, Operation, check
from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

KEYS = 3
CLIENTS = 5
FAULTS = 6
SEED = 20261124


@pytest.fixture
def managers() -> Iterator[Testbed]:
    """Five hosts, all managers; no image is needed."""
    testbed = Testbed(5, name="ml", network="192.168.93")
    try:
        testbed.up()
        testbed.form_cluster(5)
        yield testbed
        assert not testbed.broken_invariants()
    finally:
        testbed.down()


class Client(threading.Thread):
    """Reads and writes a label of a config in turn, through whichever manager it likes, and notes what it saw."""

    def __init__(self, number: int, testbed: Testbed, config_ids: list[str], stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}")
        self.history: dict[int, list[Operation]] = {key: [] for key in range(KEYS)}
        self._number, self._testbed, self._configs, self._stop_asked = number, testbed, config_ids, stop
        self._random = random.Random(SEED + number)

    def run(self) -> None:
        count = 0
        while not self._stop_asked.is_set():
            key = self._random.randrange(KEYS)
            api = self._testbed.client(self._random.choice(list(self._testbed.hosts())), timeout_s=4).api
            count += 1
            with contextlib.closing(api):
                if self._random.random() < 0.5:
                    self._read(api, key)
                else:
                    self._write(api, key, f"{self._number}-{count}")

    def _read(self, api: Any, key: int) -> None:
        begin = time.monotonic()
        with contextlib.suppress(Exception):  # a read that failed says nothing
            value = api.inspect_config(self._configs[key])["Spec"]["Labels"].get("value")
            self._note(key, begin, ("read",), value)

    def _write(self, api: Any, key: int, value: str) -> None:
        """Compare and set by the object's version: a conflict changed nothing, any other failure may have."""
        try:
            found = api.inspect_config(self._configs[key])
        except Exception:
            return
        found["Spec"]["Labels"] = {"value": value}
        begin = time.monotonic()
        url = api._url("/configs/{0}/update", self._configs[key])
        try:
            answer = api._post_json(url, data=found["Spec"], params={"version": found["Version"]["Index"]})
            api._raise_for_status(answer)
        except docker.errors.APIError as error:
            if "out of sequence" in str(error):
                return
            self._note(key, begin, ("write", value), UNKNOWN)
        except Exception:
            self._note(key, begin, ("write", value), UNKNOWN)
        else:
            self._note(key, begin, ("write", value), None)

    def _note(self, key: int, begin: float, call: object, output: object) -> None:
        end = float("inf") if output is UNKNOWN else time.monotonic()
        self.history[key].append(Operation(self.name, begin, end, call, output))


def upset(testbed: Testbed, choice: random.Random) -> None:
    """One fault: kill or cut one or two managers for a while, then make them whole."""
    victims = choice.sample(list(testbed.hosts()), choice.choice([1, 1, 2]))
    kill = choice.random() < 0.5
    for host in victims:
        testbed.kill(host) if kill else testbed.cut(host)
    time.sleep(choice.uniform(1.0, 3.0))  # how long the fault lasts, not a wait for anything
    for host in victims:
        testbed.start(host) if kill else testbed.heal(host)
    other = next(host for host in testbed.hosts() if host not in victims)
    wait_until(lambda: testbed.leader(other), "a leader")


def test_histories_under_kills_and_cuts_are_linearizable(managers: Testbed) -> None:
    api = managers.client(1).api
    configs = [api.create_config(f"register-{key}", b"x", labels={"value": "initial"})["ID"] for key in range(KEYS)]
    stop = threading.Event()
    clients = [Client(number, managers, configs, stop) for number in range(CLIENTS)]
    choice = random.Random(SEED)
    print(f"seed {SEED}")
    try:
        for client in clients:
            client.start()
        for _ in range(FAULTS):
            upset(managers, choice)
    finally:
        stop.set()
        for client in clients:
            client.join()
    for key in range(KEYS):
        history = [operation for client in clients for operation in client.history[key]]
        assert len(history) > 20, "hardly anything was tried"
        assert check(history, initial="initial"), f"register {key} is not linearizable: {history}"
