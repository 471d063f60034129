"""The table of modes, and that of what is done for them."""

from __future__ import annotations

import pytest

from manager.model.modes import MODES, REPLICATED, mode_of
from manager.orchestrator.modes import ORCHESTRATORS
from proto.specs_pb2 import ServiceMode, ServiceSpec


def test_there_is_a_row_for_every_mode_of_the_schema() -> None:
    assert MODES.keys() == {field.name for field in ServiceMode.DESCRIPTOR.oneofs_by_name["mode"].fields}


def test_an_orchestrator_for_every_mode_that_is_served() -> None:
    assert ORCHESTRATORS.keys() == {mode for mode in MODES.values() if mode.served}


@pytest.mark.parametrize("name", MODES)
def test_the_mode_of_a_spec(name: str) -> None:
    spec = ServiceSpec()
    getattr(spec.mode, name).SetInParent()
    assert mode_of(spec) is MODES[name]
    assert mode_of(spec).word == name.replace("_", "-")


def test_a_spec_without_a_mode_is_replicated() -> None:
    assert mode_of(ServiceSpec()) is REPLICATED
