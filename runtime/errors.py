"""What the container engine refuses, as types: the HTTP layer maps each class to one status code.

The messages are the Engine API's own where it has one, because users search for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class EngineError(Exception):
    """Base of everything the engine raises on purpose. HTTP 500 unless a subclass says otherwise."""


class NotFoundError(EngineError):
    """The object named in the request does not exist (404)."""


class InvalidParameterError(EngineError):
    """The request contradicts itself or names something impossible (400)."""


class InvalidNameError(InvalidParameterError):
    """A container cannot be called so; the text is Docker's."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


class ConflictError(EngineError):
    """The object's state or another object's name stands in the way (409)."""


class NotModifiedError(EngineError):
    """The object is already as asked: started, stopped (304)."""


class ForbiddenError(EngineError):
    """The operation is not allowed on this object (403), such as removing a predefined network."""


class UnavailableError(EngineError):
    """The host cannot do this now: no address left, a kernel feature missing (503)."""


class AddressInUseError(ForbiddenError):
    """Another container has this address, or asked for it by name and still exists, running or not."""

    def __init__(self, address: str, holder: str) -> None:
        super().__init__(f"Address already in use: {address} is reserved for container {holder}")
        self.address, self.holder = address, holder


class HostError(EngineError):
    """A tool or the kernel failed: runc, conmon, mount, netlink (500). The message carries its words."""


class ContainerNotFoundError(NotFoundError):
    """No container has this ID, name or unique ID prefix."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"No such container: {ref}")
        self.ref = ref


class NetworkNotFoundError(NotFoundError):
    """No network has this ID, name or unique ID prefix."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"network {ref} not found")
        self.ref = ref


class VolumeNotFoundError(NotFoundError):
    """No volume has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"get {name}: no such volume")
        self.name = name


class ExecNotFoundError(NotFoundError):
    """No exec instance has this ID."""

    def __init__(self, exec_id: str) -> None:
        super().__init__(f"No such exec instance: {exec_id}")
        self.exec_id = exec_id


class AttachRefusedError(ConflictError):
    """A container that is "paused" or "restarting" (``HINTS``) cannot be attached to, nor can what it said be replayed."""

    HINTS: ClassVar[Mapping[str, str]] = {
        "paused": "unpause the container before attach",
        "restarting": "wait until the container is running",
    }

    def __init__(self, *, container_id: str, status: str) -> None:
        super().__init__(f"container {container_id} is {status}, {self.HINTS[status]}")
        self.container_id, self.status = container_id, status


class ExecHasRunError(ConflictError):
    """An exec runs once."""

    def __init__(self, exec_id: str) -> None:
        super().__init__(f"exec {exec_id} has already been run")
        self.exec_id = exec_id


class NotRunningError(ConflictError):
    """What is asked for needs a container that runs."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container {container_id} is not running")
        self.container_id = container_id


class NotConnectedError(EngineError):
    """The container is not on the network that it is to leave (500, as in dockerd)."""

    def __init__(self, *, container_id: str, network: str) -> None:
        super().__init__(f"container {container_id} is not connected to network {network}")
        self.container_id, self.network = container_id, network


class NameConflictError(ConflictError):
    """Another container has this name."""

    def __init__(self, *, name: str, container_id: str) -> None:
        super().__init__(
            f'Conflict. The container name "/{name}" is already in use by container "{container_id}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
        self.name, self.container_id = name, container_id


class StartError(EngineError):
    """The OCI runtime could not create or start the process.

    ``exit_code`` is what ``docker run`` ends with: 127 command not found, 126 not executable, 128 anything else.
    The first two are the request's fault (400), as in dockerd.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
