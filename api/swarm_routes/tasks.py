"""/tasks (features A6.05, W10).

A stored task names its spec version; the API's task carries the spec, so the two are joined here. Tasks of one version
share the JSON text of their spec: it is most of a task, and a list has thousands of tasks of a handful of versions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from aiohttp import web

from api.json_codec import encode, encode_json, json_text
from api.swarm_routes.context import TIMEOUT_S, SwarmContext, json_bytes, read_filters
from api.swarm_routes.parts import Part, PartCache, send_list
from proto.control_pb2 import GetTaskRequest, ListTasksRequest
from proto.objects_pb2 import SpecVersion, Task

_NO_SPEC = b',"Spec":{},"Labels":{}}'
"""Of a task whose version is gone."""


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _TaskRoutes(context)
    return [
        web.get("/tasks", handlers.list, allow_head=False),
        web.get("/tasks/{id}", handlers.inspect, allow_head=False),
    ]


class _TaskRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context
        self._tasks, self._specs = PartCache(task_part), PartCache(spec_part)

    async def list(self, request: web.Request) -> web.StreamResponse:
        control = await self._context.control()
        response = await control.ListTasks(ListTasksRequest(filters=read_filters(request)), timeout=TIMEOUT_S)
        specs = {part.ref: part.text for part in self._specs.parts(response.specs)}

        def texts(tasks: Sequence[bytes]) -> Iterator[bytes]:
            return (text + specs.get(ref, _NO_SPEC) for _, text, ref in self._tasks.parts(tasks))

        return await send_list(request, response.tasks, texts)

    async def inspect(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        response = await control.GetTask(GetTaskRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        spec = spec_text(response.spec) if response.HasField("spec") else _NO_SPEC
        return json_bytes(task_text(response.task) + spec)


def task_part(data: bytes) -> Part:
    """A task without its spec, to be joined by the version it names."""
    task = Task.FromString(data)
    return Part(data, task_text(task), _ref(task))


def spec_part(data: bytes) -> Part:
    spec = SpecVersion.FromString(data)
    return Part(data, spec_text(spec), _ref(spec))


def task_text(task: Task) -> bytes:
    """The JSON of a task up to its spec, which ``spec_text`` goes on with."""
    value = encode(task)
    if task.networks_attachments:
        value["NetworksAttachments"] = [
            {"Network": {"ID": attachment.network_id}, "Addresses": list(attachment.addresses)}
            for attachment in task.networks_attachments
        ]
    return json_text(value)[:-1]


def spec_text(spec: SpecVersion) -> bytes:
    """The end of the JSON of a task of this version: `Spec` (the task template) and `Labels` (the service's)."""
    labels = json_text(dict(sorted(spec.spec.labels.items())))
    return b',"Spec":' + encode_json(spec.spec.task_template) + b',"Labels":' + labels + b"}"


def _ref(obj: Task | SpecVersion) -> str:
    """Alike for a task and the version it names; the tasks of one version share the text."""
    return sys.intern(f"{obj.service_id}.{obj.spec_version}")
