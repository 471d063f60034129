"""Which containers a prune removes."""

from __future__ import annotations

import pytest

from runtime.containers.prune import choose, query
from runtime.errors import InvalidParameterError
from runtime.types import ContainerSummary, SummaryHostConfig, SummaryNetworkSettings


def summary(container_id: str, created_s: int, **labels: str) -> ContainerSummary:
    return ContainerSummary(
        Id=container_id,
        Names=[f"/{container_id}"],
        Image="busybox",
        ImageID="sha256:1",
        Command="sh",
        Created=created_s,
        Ports=[],
        Labels=labels,
        State="exited",
        Status="",
        HostConfig=SummaryHostConfig(NetworkMode="bridge"),
        NetworkSettings=SummaryNetworkSettings(Networks={}),
        Mounts=[],
    )


BOTH = [summary("old", 100), summary("new", 9_999, keep="yes")]


def test_only_what_does_not_run_is_asked_for() -> None:
    assert query({}) == {"status": ["created", "exited", "dead"]}
    assert query({"label": ["a"], "until": ["1h"]}) == {"status": ["created", "exited", "dead"], "label": ["a"]}


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [({}, ["old", "new"]), ({"label!": ["keep=yes"]}, ["old"]), ({"until": ["1h"]}, ["old"]), ({"until": ["50"]}, [])],
)
def test_what_the_filters_leave_is_removed(filters: dict[str, list[str]], chosen: list[str]) -> None:
    assert choose(BOTH, filters, now_s=10_000) == chosen


def test_until_is_given_once_and_makes_sense() -> None:
    for values in (["1h", "2h"], ["soon"], ["1d"]):
        with pytest.raises(InvalidParameterError):
            choose(BOTH, {"until": values}, now_s=10_000)
