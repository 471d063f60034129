"""A resolver of the tests that answers nobody: it keeps what it is told."""

from __future__ import annotations

from runtime.resolver.port import Change, Directory, Everything


class FakeResolver:
    """See ``Resolver``. ``told`` is the state, ``done`` what led to it; ``failure`` is raised once a change was noted."""

    def __init__(self) -> None:
        self.told = Directory()
        self.done: list[Change | Everything] = []
        self.failure: Exception | None = None

    async def tell(self, *changes: Change) -> None:
        for change in changes:
            self.told.apply(change)
            self.done.append(change)
        self._fail()

    async def replace(self, everything: Everything) -> None:
        self.told.replace(everything)
        self.done.append(everything)
        self._fail()

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
