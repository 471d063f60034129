"""What sessions and their absence do to node objects. Pure: object in, object out.

Owner: ``status``, ``status_since`` and ``description`` of a node are written here, but for the object that a join makes.
Who has a description has had a session.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from google.protobuf.timestamp_pb2 import Timestamp

from base.printable import one_line
from manager.constants import NEVER_CAME_FORGET_S, NODE_UNKNOWN_MESSAGE
from manager.dispatcher.cleaning import clean
from manager.dispatcher.reports import REPORT_SIZE_BYTES_MAX
from manager.model.nodes import copy_node
from proto.dispatcher_pb2 import SessionRequest
from proto.objects_pb2 import Machine, Node, NodeState, NodeStatus
from proto.specs_pb2 import NodeAvailability, NodeRole

DESCRIPTION_SIZE_BYTES_MAX = 256 * 1024
ADDRESS_LENGTH_MAX = 255
NONCE_LENGTH_MAX = 128
KNOWN_NONCES_MAX = 64
MACHINE_SIZE_BYTES_MAX = 64 * 1024
"""With fields that nobody knows: all of it is kept, and an object that fills a log entry cannot be written again."""

FIRST_SIZE_BYTES_MAX = DESCRIPTION_SIZE_BYTES_MAX + MACHINE_SIZE_BYTES_MAX + 16 * 1024
LATER_SIZE_BYTES_MAX = DESCRIPTION_SIZE_BYTES_MAX + REPORT_SIZE_BYTES_MAX + 16 * 1024
"""Of messages of a session, which is kept until what it says is stored: of fields that nobody knows, too."""

ACCEPT_LABEL = "swarm.machine.accept"
ACCEPTANCE_LENGTH = 12

HEARTBEAT_FAILURE = "heartbeat failure"


def invalid_request(request: SessionRequest, *, first: bool) -> str:
    """What is wrong with a message of a session, "" when nothing is."""
    if first and not request.HasField("description"):
        return "the first message of a session has to describe the node"
    if first and not 0 < len(request.boot_nonce) <= NONCE_LENGTH_MAX:
        return f"boot nonce: {len(request.boot_nonce)} characters, want 1..{NONCE_LENGTH_MAX}"
    if first and (problem := _invalid_identity(request)):
        return problem
    if len(request.addr) > ADDRESS_LENGTH_MAX:
        return f"address: {len(request.addr)} characters, at most {ADDRESS_LENGTH_MAX}"
    if request.data_path_addr and not _is_address(request.data_path_addr):
        return f"data path address: {one_line(request.data_path_addr[:ADDRESS_LENGTH_MAX])!r} is no address of a host"
    if (size_bytes := request.description.ByteSize()) > DESCRIPTION_SIZE_BYTES_MAX:
        return f"description: {size_bytes} bytes, at most {DESCRIPTION_SIZE_BYTES_MAX}"
    if (size_bytes := request.ByteSize()) > (size_bytes_max := FIRST_SIZE_BYTES_MAX if first else LATER_SIZE_BYTES_MAX):
        return f"message: {size_bytes} bytes, at most {size_bytes_max}"
    return ""


def _is_address(text: str) -> bool:
    """Of one host, without a zone: it is told to other nodes."""
    if len(text) > ADDRESS_LENGTH_MAX or "%" in text:
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast or address.is_reserved)


def _invalid_identity(request: SessionRequest) -> str:
    machine = request.machine
    if max(len(request.known_nonces), len(machine.links)) > KNOWN_NONCES_MAX:
        return f"boot nonces: {len(request.known_nonces)}, links: {len(machine.links)}, at most {KNOWN_NONCES_MAX} each"
    if max(map(len, (*request.known_nonces, machine.id, machine.hardware, *machine.links))) > NONCE_LENGTH_MAX:
        return f"a boot nonce or a fact of the machine has more than {NONCE_LENGTH_MAX} characters"
    if machine.ByteSize() > MACHINE_SIZE_BYTES_MAX:
        return f"facts of the machine: {machine.ByteSize()} bytes, at most {MACHINE_SIZE_BYTES_MAX}"
    return ""


def why_another_machine(node: Node, first: SessionRequest) -> str:
    """Why who registers is not the machine that did so last (X31), "" when it may be it, or was accepted.

    A node without a record is anybody's: it never registered. An agent that has lost its file is not one that has a copy
    of it.
    """
    if node.spec.labels.get(ACCEPT_LABEL) == acceptance_of(first):
        return ""
    return why_copy(node, first.machine, {first.boot_nonce, *first.known_nonces} if first.known_nonces else ())


def why_copy(node: Node, shown: Machine, boots: Collection[str]) -> str:
    """Why that machine is not the one that registered last for the node, "" when it may be it.

    Args:
        boots: of its agent's file, the one that is running included; empty when there is no file.
    """
    known = node.machine
    if known.id and shown.id and known.id != shown.id:
        return "its /etc/machine-id is another one"
    if known.hardware and shown.hardware:
        if known.hardware != shown.hardware:
            return "its hardware has another ID"
    elif known.links and shown.links and not set(known.links) & set(shown.links):
        return "its network interfaces have other MAC addresses"
    if node.boot_nonce and boots and node.boot_nonce not in boots:
        return "the node has run since this copy of its state folder, or this backup, was made"
    return ""


def acceptance_of(first: SessionRequest) -> str:
    """What the label has to say that lets this boot of this machine in, and no other ever."""
    return first.boot_nonce[:ACCEPTANCE_LENGTH]


def registered(node: Node, request: SessionRequest, now: Timestamp) -> Node | None:
    """The node once its agent has said who it is: READY, described, reachable at its address.

    Returns:
        A changed copy, None when the store says all that already (an agent that came back at once).
    """
    changed = copy_node(node)
    first_time = not node.HasField("description")
    _describe(changed, request)
    changed.boot_nonce = request.boot_nonce
    changed.machine.CopyFrom(request.machine)
    changed.machine.DiscardUnknownFields()
    unset = NodeAvailability.NODE_AVAILABILITY_UNSPECIFIED
    if first_time and node.spec.availability == unset and request.availability != unset:
        changed.spec.availability = request.availability
    changed.data_path_addr = request.data_path_addr
    status = NodeStatus(state=NodeState.NODE_STATE_READY, addr=one_line(request.addr) or node.status.addr)
    return _with_status(node, changed, status, now)


def described(node: Node, request: SessionRequest) -> Node | None:
    """The node after a later message of its session brought a description or an address."""
    changed = copy_node(node)
    _describe(changed, request)
    if request.addr:
        changed.status.addr = one_line(request.addr)
        changed.data_path_addr = request.data_path_addr
    return changed if changed != node else None


def _describe(changed: Node, request: SessionRequest) -> None:
    if request.HasField("description"):
        changed.description.CopyFrom(request.description)
        changed.description.DiscardUnknownFields()
        clean(changed.description)


def unknown(node: Node, now: Timestamp) -> Node | None:
    """The node for a leader that has not heard of it yet; None for one that is down already.

    Also a node that was UNKNOWN before gets the new time: it had no chance to show up while nobody led.
    """
    if node.status.state == NodeState.NODE_STATE_DOWN:
        return None
    status = NodeStatus(state=NodeState.NODE_STATE_UNKNOWN, message=NODE_UNKNOWN_MESSAGE, addr=node.status.addr)
    changed = copy_node(node)
    changed.status.CopyFrom(status)
    changed.status_since.CopyFrom(now)
    return changed


def down(node: Node, now: Timestamp) -> Node | None:
    """The node after its heartbeats have failed to come; None when it is known to be down."""
    if node.status.state == NodeState.NODE_STATE_DOWN:
        return None
    status = NodeStatus(state=NodeState.NODE_STATE_DOWN, message=HEARTBEAT_FAILURE, addr=node.status.addr)
    return _with_status(node, copy_node(node), status, now)


def has_come(node: Node) -> bool:
    """Whether the node has ever had a session: it described itself then."""
    return node.HasField("description")


def is_given_up(node: Node, now: Timestamp) -> bool:
    """Whether the node joined as a worker, has not shown up since, and may be forgotten.

    Without an object its certificate opens nothing to a worker. One that says manager does, so such a node stays until
    somebody removes it, which bans the certificate.
    """
    if has_come(node) or NodeRole.NODE_ROLE_MANAGER in (node.spec.role, node.role):
        return False
    down_s = (now.ToNanoseconds() - node.status_since.ToNanoseconds()) / 1e9
    return node.status.state == NodeState.NODE_STATE_DOWN and down_s >= NEVER_CAME_FORGET_S


def _with_status(old: Node, changed: Node, status: NodeStatus, now: Timestamp) -> Node | None:
    changed.status.CopyFrom(status)
    if old.status.state != status.state or not old.HasField("status_since"):
        changed.status_since.CopyFrom(now)
    return changed if changed != old else None
