"""What an agent's report does to the stored task. Pure: object and report in, object out (features A6.01, A6.03).

A worker is believed about its own tasks only, once it was given them, and only forwards: states rise, a final state
stays (``model.transitions``).
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from base.printable import one_line
from manager.dispatcher.assignments import NODE_NETWORK_ID
from manager.dispatcher.cleaning import clean
from manager.model.tasks import copy_task, has_ended
from manager.model.transitions import REPORTABLE, TRANSITIONS, Owner, replace_status
from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import TASK_STATE_RUNNING, NetworkAttachment, Task, TaskStatus

TEXT_LENGTH_MAX = 4096
"""Of message and error, in characters; the rest is cut off. A report enters the log of every manager."""

PORTS_MAX = 1024
PORTS_SIZE_BYTES_MAX = 16 * 1024
ATTACHMENT_ADDRESSES_MAX = 16
ADDRESS_LENGTH_MAX = 64

_AGENTS = TRANSITIONS[Owner.AGENT]


def refusal(task: Task | None, update: TaskStatusUpdate, node_id: str) -> str:
    """Why a report is passed over; "" when it is to be applied. None of these is worth a second try by the agent."""
    if task is None:
        return "no such task"
    if task.node_id != node_id:
        return "the task is not this node's"
    known, reported = task.status.state, update.status.state
    if reported not in REPORTABLE:
        return "not a state an agent reports"
    if reported < known:
        return "the state is behind what is known"
    if reported == known or (known, reported) in _AGENTS:
        return ""
    return "the task has ended already" if has_ended(task) else "the task is not assigned yet"


def apply(task: Task, update: TaskStatusUpdate, now: Timestamp) -> Task | None:
    """The task after a report that ``refusal`` lets through.

    Args:
        task: as stored; not changed.
        update: the report.
        now: the leader's time, which ``running_since`` is told in.

    Returns:
        A changed copy, or None when the report says nothing new. Of a task that has ended nothing is: its agent sends
        its end again when it does not know that it arrived, and says no other words of it.
    """
    if has_ended(task):
        return None
    status = _cleaned(update.status, now)
    status.ClearField("running_since")
    if task.status.HasField("running_since"):
        status.running_since.CopyFrom(task.status.running_since)
    elif started := _running_since(update.status, now):
        status.running_since.CopyFrom(started)
    attachments = _merged(task.networks_attachments, update.networks_attachments)
    is_further = status.state != task.status.state
    if not is_further and attachments is None and _same(task.status, status):
        return None
    changed = copy_task(task)
    replace_status(changed, Owner.AGENT, status)
    if attachments is not None:
        del changed.networks_attachments[:]
        changed.networks_attachments.extend(attachments)
    return changed


def _running_since(status: TaskStatus, now: Timestamp) -> Timestamp | None:
    """When the task began to run, on the leader's clock.

    An agent that was cut off reports the end of a run that the managers never saw: it tells how long it was, by its
    own clock, and only this length is believed.
    """
    if status.state == TASK_STATE_RUNNING:
        return now
    if status.state < TASK_STATE_RUNNING or not status.HasField("running_since"):
        return None
    if not _is_time(status.running_since) or not _is_time(status.timestamp):
        return None
    ran_ns = status.timestamp.ToNanoseconds() - status.running_since.ToNanoseconds()
    began = Timestamp()
    began.FromNanoseconds(max(0, now.ToNanoseconds() - max(0, ran_ns)))
    return began


def _is_time(timestamp: Timestamp) -> bool:
    """Whether it can be shown: year 1 to 9999, nanoseconds below a second (timestamp.proto)."""
    return -62_135_596_800 <= timestamp.seconds <= 253_402_300_799 and 0 <= timestamp.nanos < 1_000_000_000


def _cleaned(status: TaskStatus, now: Timestamp) -> TaskStatus:
    """A copy in which nothing is longer than it has reason to be or moves a terminal's cursor, and the time is one."""
    cut = TaskStatus()
    cut.CopyFrom(status)
    cut.DiscardUnknownFields()
    if not status.HasField("timestamp") or not _is_time(status.timestamp):
        cut.timestamp.CopyFrom(now)
    if len(cut.message) > TEXT_LENGTH_MAX:
        cut.message = cut.message[:TEXT_LENGTH_MAX]
    if len(cut.err) > TEXT_LENGTH_MAX:
        cut.err = cut.err[:TEXT_LENGTH_MAX]
    if len(cut.container_status.container_id) > TEXT_LENGTH_MAX:
        cut.container_status.container_id = cut.container_status.container_id[:TEXT_LENGTH_MAX]
    ports = cut.port_status.ports
    if len(ports) > PORTS_MAX:
        del ports[PORTS_MAX:]
    if not ports or cut.port_status.ByteSize() > PORTS_SIZE_BYTES_MAX:
        cut.ClearField("port_status")
    clean(cut)
    return cut


def _same(old: TaskStatus, new: TaskStatus) -> bool:
    """Equal but for the time of the report."""
    copy = TaskStatus()
    copy.CopyFrom(new)
    copy.ClearField("timestamp")
    if old.HasField("timestamp"):
        copy.timestamp.CopyFrom(old.timestamp)
    return old == copy


def _merged(
    known: Sequence[NetworkAttachment], reported: Sequence[NetworkAttachment]
) -> list[NetworkAttachment] | None:
    """The managers' attachments as they are, the node's own as reported; None when that is as it was."""
    own = [attachment for attachment in reported if attachment.network_id == NODE_NETWORK_ID][:1]
    if not own:
        return None
    merged = [attachment for attachment in known if attachment.network_id != NODE_NETWORK_ID]
    attachment = NetworkAttachment(network_id=NODE_NETWORK_ID)
    addresses = [one_line(address) for address in own[0].addresses if len(address) <= ADDRESS_LENGTH_MAX]
    attachment.addresses.extend(addresses[:ATTACHMENT_ADDRESSES_MAX])
    merged.append(attachment)
    return merged if merged != list(known) else None
