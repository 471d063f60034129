"""A duplex stream to a container's or exec's stdio, over conmon's attach socket."""

from __future__ import annotations

from types import TracebackType


class AttachStream:
    """Output comes out of ``read()``, input goes into ``write()``.

    With a TTY everything arrives as "stdout". Use as an async context manager or call ``close()``.
    """

    async def read(self) -> tuple[str, bytes] | None:
        """The next piece as ("stdout" | "stderr", bytes); None once the process ended and all was read."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """Send to the process's stdin; waits while it does not read."""
        raise NotImplementedError

    async def close_stdin(self) -> None:
        """End of input (half-close); output goes on."""
        raise NotImplementedError

    def close(self) -> None:
        """Detach; the process runs on. Idempotent."""
        raise NotImplementedError

    async def __aenter__(self) -> AttachStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
