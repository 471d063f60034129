"""/tasks (features A6.05, W10).

A stored task names its spec version; the API's task carries the spec, so the two are joined here. Tasks of one version
share the JSON text of their spec: it is most of a task, and a list has thousands of tasks of a handful of versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec
from aiohttp import web

from api.json_codec import encode, encode_json
from api.requests import json_response
from api.swarm_routes.context import TIMEOUT_S, SwarmContext, json_bytes, read_filters
from proto.control_pb2 import GetTaskRequest, ListTasksRequest
from proto.objects_pb2 import SpecVersion, Task

TASKS_AT_A_TIME = 250
"""Encoded in some 5 ms."""

_NO_SPEC = msgspec.Raw(b"{}")


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _TaskRoutes(context)
    return [
        web.get("/tasks", handlers.list, allow_head=False),
        web.get("/tasks/{id}", handlers.inspect, allow_head=False),
    ]


class _TaskRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        response = await control.ListTasks(ListTasksRequest(filters=read_filters(request)), timeout=TIMEOUT_S)
        return json_bytes(await _encode_all(tasks_json(response.tasks, response.specs)))

    async def inspect(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        response = await control.GetTask(GetTaskRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return json_response(next(tasks_json([response.task], [response.spec])))


async def _encode_all(tasks: Iterator[dict[str, object]]) -> bytes:
    """The list, with turns for others in between: ten thousand tasks take 0.2 s of the loop that serves containers."""
    slices: list[bytes] = []
    while part := list(islice(tasks, TASKS_AT_A_TIME)):
        slices.append(msgspec.json.encode(part)[1:-1])
        await asyncio.sleep(0)
    return b"[" + b",".join(slices) + b"]"


def tasks_json(tasks: Iterable[Task], specs: Iterable[SpecVersion]) -> Iterator[dict[str, object]]:
    """Tasks with `Spec` (the version's task template) and `Labels` (the service's, as of that version).

    Args:
        tasks: in any order, which is kept.
        specs: every version the tasks name; a task whose version is gone shows an empty spec.
    """
    parts = {(spec.service_id, spec.spec_version): _spec_parts(spec) for spec in specs}
    return (_task_json(task, parts.get((task.service_id, task.spec_version), {})) for task in tasks)


def _spec_parts(spec: SpecVersion) -> dict[str, object]:
    return {"Spec": msgspec.Raw(encode_json(spec.spec.task_template)), "Labels": dict(spec.spec.labels)}


def _task_json(task: Task, parts: dict[str, object]) -> dict[str, object]:
    value: dict[str, object] = encode(task) | {"Spec": _NO_SPEC, "Labels": {}} | parts
    if task.networks_attachments:
        value["NetworksAttachments"] = [
            {"Network": {"ID": attachment.network_id}, "Addresses": list(attachment.addresses)}
            for attachment in task.networks_attachments
        ]
    return value
