"""/services/{id}/logs and /tasks/{id}/logs, of the tasks that run on this host (features A5.10, C28).

Every line carries its origin in front when ``details`` is asked for, which the CLI always does: it prints
``web.1.<task>@<host> | line`` from it. Lines of several tasks come by time, the newest last (``merged_logs.py``). A task on another node gets one line on stderr that says so, in its own name;
when no task is here the request is refused (501).

Source: moby ``daemon/server/httputils/write_log_stream.go``, cli ``command/service/logs.go``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote_plus

from aiohttp import web

from api.errors import BadRequestError, NotServedError, message_of
from api.filters import timestamp_ns
from api.requests import flag
from api.streams import MULTIPLEXED_STREAM, RAW_STREAM, frame, start_stream
from api.swarm_routes.context import TIMEOUT_S, LocalLogs, LogOptions, SwarmContext
from api.swarm_routes.merged_logs import send_merged
from base.numbers import natural
from proto.control_pb2 import Filters, FilterValues, GetServiceRequest, GetTaskRequest, ListTasksRequest
from proto.objects_pb2 import Task
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.types import TASK_ID_LABEL, LogLine

ELSEWHERE = b"logs of tasks on other nodes are not served yet: ask the engine of the task's node\n"


Send = Callable[[Task, LogLine], Awaitable[None]]


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _LogRoutes(context)
    return [
        web.get("/services/{id}/logs", handlers.service_logs, allow_head=False),
        web.get("/tasks/{id}/logs", handlers.task_logs, allow_head=False),
    ]


def engine_logs(engine: Engine) -> LocalLogs:
    """Reads the logs of this host's tasks from their containers, found by label."""

    async def read(task: Task, options: LogOptions) -> AsyncIterator[LogLine]:
        for container in engine.list({"label": [f"{TASK_ID_LABEL}={task.id}"]}, all=True):
            lines = engine.logs(
                container.Id,
                stdout=options.stdout,
                stderr=options.stderr,
                follow=options.follow,
                since_ns=options.since_ns,
                tail=options.tail,
            )
            async for line in lines:
                yield line

    return read


class _LogRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context

    async def service_logs(self, request: web.Request) -> web.StreamResponse:
        options = _options(request)
        control = await self._context.control()
        found = await control.GetService(GetServiceRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        filters = Filters(by_key={"service": FilterValues(values=[found.service.id])})
        listed = await control.ListTasks(ListTasksRequest(filters=filters), timeout=TIMEOUT_S)
        tty = found.service.spec.task_template.container_spec.tty
        return await self._stream(request, [Task.FromString(data) for data in listed.tasks], options, tty=tty)

    async def task_logs(self, request: web.Request) -> web.StreamResponse:
        options = _options(request)
        control = await self._context.control()
        found = await control.GetTask(GetTaskRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        tty = found.spec.spec.task_template.container_spec.tty
        return await self._stream(request, [found.task], options, tty=tty)

    async def _stream(
        self, request: web.Request, tasks: Sequence[Task], options: LogOptions, *, tty: bool
    ) -> web.StreamResponse:
        node_id = self._context.member.info().node_id
        here = [task for task in tasks if task.node_id == node_id]
        read = self._context.local_logs
        elsewhere = [task for task in tasks if task.node_id and task.node_id != node_id]
        if read is None or (elsewhere and not here):
            raise NotServedError(ELSEWHERE.decode().strip())
        timestamps, details = flag(request, "timestamps"), flag(request, "details")
        response = await start_stream(request, RAW_STREAM if tty else MULTIPLEXED_STREAM)

        async def send(task: Task, line: LogLine) -> None:
            data = log_line(task, line, timestamps=timestamps, details=details)
            await response.write(data if tty else frame(line.stream, data))

        if options.stderr:
            for task in elsewhere:
                await send(task, _notice(ELSEWHERE))
        logs = [(task, _readable(read, task, options)) for task in sorted(here, key=lambda task: task.id)]
        await send_merged(logs, send, follow=options.follow)
        await response.write_eof()
        return response


def log_line(task: Task, line: LogLine, *, timestamps: bool, details: bool) -> bytes:
    """One line as clients read it: ``[time ][details ]text``."""
    text = line.data
    if details:
        origin = {
            "com.docker.swarm.node.id": task.node_id,
            "com.docker.swarm.service.id": task.service_id,
            TASK_ID_LABEL: task.id,
        }
        text = ",".join(f"{key}={quote_plus(value)}" for key, value in origin.items()).encode() + b" " + text
    if timestamps:
        seconds, nanos = divmod(line.timestamp_ns, 10**9)
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        text = f"{moment}.{nanos:09d}Z ".encode() + text
    return text


async def _readable(read: LocalLogs, task: Task, options: LogOptions) -> AsyncIterator[LogLine]:
    """A task's log; that it cannot be read (any further) is its last line."""
    try:
        async for line in read(task, options):
            yield line
    except EngineError as error:
        yield _notice(f"{message_of(error)}\n".encode())


def _notice(text: bytes) -> LogLine:
    return LogLine(stream="stderr", timestamp_ns=time.time_ns(), data=text)


LINES_MAX = 2**63 - 1
"""As many as there are."""


def _options(request: web.Request) -> LogOptions:
    stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
    if not (stdout or stderr):
        raise BadRequestError("Bad parameters: you must choose at least one stream")
    tail = request.query.get("tail", "all")
    if tail in ("", "all"):
        lines = -1
    elif tail.isascii() and tail.isdecimal():
        number = natural(tail, largest=LINES_MAX)
        lines = LINES_MAX if number is None else number
    elif tail.startswith("-") and tail[1:].isdecimal():
        raise BadRequestError("negative tail values not supported")
    else:
        raise BadRequestError('tail value must be a positive integer or "all"')
    return LogOptions(
        stdout=stdout,
        stderr=stderr,
        follow=flag(request, "follow"),
        since_ns=timestamp_ns(request.query.get("since", ""), "since"),
        tail=lines,
    )
