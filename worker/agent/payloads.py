"""Secrets and configs as files for a container (features A10.15 to A10.17).

Files lie on a tmpfs below the run folder, one folder a task, and are bind-mounted read-only into the container: they
survive a restart of the daemon, never touch a disk, and go with the container. ``plan_files`` decides, ``write`` and
``remove`` do it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from base.gotemplate.faults import QUOTED_LENGTH_MAX
from base.numbers import natural
from base.trees import remove_tree
from proto.objects_pb2 import Config, Secret
from proto.specs_pb2 import ConfigReference, FileTarget, SecretReference
from runtime.kernel.mounts import filesystem_of, mount_tmpfs, own_mounts
from runtime.types import Mount
from worker.agent.container_spec import NodeFacts, Templates, expand_env
from worker.agent.contents import is_object_id
from worker.agent.executor import Assignment, ExecutorError

SECRETS_FOLDER = "/run/secrets"

_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """One file in a container.

    Attributes:
        target: absolute path in the container.
        mode: permission bits.
    """

    target: str
    data: bytes = field(repr=False)
    uid: int
    gid: int
    mode: int


def plan_files(assignment: Assignment, node: NodeFacts) -> list[PayloadFile]:
    """The files that the task's spec asks for.

    Raises:
        ExecutorError: a secret or config does not exist, an owner is no number, a template is wrong.
    """
    spec = assignment.spec_version.spec.task_template.container_spec
    templates = _Payloads(assignment, node)
    files: list[PayloadFile] = []
    for secret_ref in spec.secrets:
        if not secret_ref.HasField("file"):
            continue
        data = templates.secret_data(secret_ref.secret_id, secret_ref.secret_name)
        files.append(_file(data, secret_ref.file, SECRETS_FOLDER, f"secret {secret_ref.secret_name}"))
    for config_ref in spec.configs:
        if not config_ref.HasField("file"):
            continue  # for the runtime, not for the container (A10.08)
        data = templates.config_data(config_ref.config_id, config_ref.config_name)
        files.append(_file(data, config_ref.file, "/", f"config {config_ref.config_name}"))
    return files


_Key: TypeAlias = tuple[type[Secret] | type[Config], str]
"""A payload's kind and ID."""


class _Payloads:
    """Payloads of one task; those with the driver ``golang`` are templates, which may name one another.

    Each is expanded once, however often it is named.
    """

    def __init__(self, assignment: Assignment, node: NodeFacts) -> None:
        self._assignment, self._templates = assignment, Templates(assignment, node)
        self._spec = assignment.spec_version.spec.task_template.container_spec
        self._open: set[_Key] = set()
        self._made: dict[_Key, bytes] = {}

    def secret_data(self, secret_id: str, name: str) -> bytes:
        secret = self._assignment.needed.of(Secret).get(secret_id)
        if secret is None:
            raise ExecutorError(f"secret {name or secret_id} not found")
        return self._expanded(f"secret {name}", secret)

    def config_data(self, config_id: str, name: str) -> bytes:
        config = self._assignment.needed.of(Config).get(config_id)
        if config is None:
            raise ExecutorError(f"config {name or config_id} not found")
        return self._expanded(f"config {name}", config)

    def _expanded(self, what: str, payload: Secret | Config) -> bytes:
        driver = payload.spec.templating.name
        if not driver:
            return payload.spec.data
        if driver != "golang":
            raise ExecutorError(f"{what}: unrecognized template type {driver}")
        key = (type(payload), payload.id)
        if key not in self._made:
            if key in self._open:
                raise ExecutorError(f"{what} is a template that needs itself")
            self._open.add(key)
            try:
                functions = {"env": self._env, "secret": self._secret, "config": self._config}
                self._made[key] = self._templates.expand(what, payload.spec.data.decode(), functions).encode()
            except UnicodeDecodeError:
                raise ExecutorError(f"{what} is a template that is no text") from None
            finally:
                self._open.discard(key)
        return self._made[key]

    @cached_property
    def _environment(self) -> dict[str, str]:
        entries = expand_env(self._assignment, self._templates)
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)

    @cached_property
    def _secrets(self) -> dict[str, SecretReference]:
        return {ref.file.name: ref for ref in reversed(self._spec.secrets)}  # of two at one place the first

    @cached_property
    def _configs(self) -> dict[str, ConfigReference]:
        return {ref.file.name: ref for ref in reversed(self._spec.configs)}

    def _env(self, name: str) -> str:
        return self._environment.get(name, "")

    def _secret(self, target: str) -> str:
        ref = self._secrets.get(target)
        if ref is None:
            raise ExecutorError(f"secret target {target[:QUOTED_LENGTH_MAX]} not found")
        return self.secret_data(ref.secret_id, ref.secret_name).decode(errors="replace")

    def _config(self, target: str) -> str:
        ref = self._configs.get(target)
        if ref is None:
            raise ExecutorError(f"config target {target[:QUOTED_LENGTH_MAX]} not found")
        return self.config_data(ref.config_id, ref.config_name).decode(errors="replace")


def _file(data: bytes, target: FileTarget, folder: str, what: str) -> PayloadFile:
    return PayloadFile(
        target=posixpath.normpath(posixpath.join(folder, target.name)),
        data=data,
        uid=_number(target.uid, f"{what}: UID"),
        gid=_number(target.gid, f"{what}: GID"),
        mode=target.mode & 0o7777,
    )


def _number(text: str, what: str) -> int:
    if not text:
        return 0
    number = natural(text, largest=2**32 - 2)
    if number is None:
        raise ExecutorError(f"{what} {text[:QUOTED_LENGTH_MAX]} is no user or group number")
    return number


class PayloadFolder:
    """Where the files lie. Methods block shortly; call them in a thread."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: below the daemon's run folder; made by ``open``.
        """
        self._path = path

    def open(self) -> None:
        """Make the folder and see to it that it is memory: a tmpfs of its own is mounted where the run folder is none.

        Raises:
            ExecutorError: neither is possible.
        """
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if filesystem_of(self._path.resolve(), own_mounts()) not in _MEMORY_FILE_SYSTEMS:
                mount_tmpfs(self._path, "mode=0700")
            self._path.chmod(0o700)
        except OSError as error:
            raise ExecutorError(f"no memory file system for secrets at {self._path}: {error}") from error

    def write(self, task_id: str, files: Sequence[PayloadFile]) -> list[Mount]:
        """Write a task's files anew; the mounts that bring them into its container.

        Raises:
            ExecutorError: the memory file system is full, or cannot be written.
        """
        if not is_object_id(task_id):
            raise ExecutorError(f"{task_id[:QUOTED_LENGTH_MAX]!r} is no ID of a task")
        folder = self._path / task_id
        try:
            remove_tree(folder)
            if not files:
                return []
            folder.mkdir(mode=0o700)
            mounts = []
            for number, file in enumerate(files):
                path = folder / str(number)
                _write(path, file)
                mounts.append(Mount(Type="bind", Source=str(path), Target=file.target, ReadOnly=True))
        except OSError as error:
            with contextlib.suppress(OSError):  # then it goes with its task
                remove_tree(folder)
            raise ExecutorError(f"writing secrets and configs failed: {error.strerror or error}") from error
        return mounts

    def remove(self, task_id: str) -> None:
        """Remove a task's files. Idempotent. Raises ExecutorError: some are left."""
        if not is_object_id(task_id):
            return  # none were written
        try:
            remove_tree(self._path / task_id)
        except OSError as error:
            raise ExecutorError(f"removing secrets and configs failed: {error.strerror or error}") from error


def _write(path: Path, file: PayloadFile) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(file.data)
        os.fchown(descriptor, file.uid, file.gid)
        os.fchmod(descriptor, file.mode)
    finally:
        os.close(descriptor)
