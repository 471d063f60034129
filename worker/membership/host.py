"""What a membership needs of the daemon around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from proto.objects_pb2 import NodeDescription
from worker.agent.executor import Executor
from worker.membership.addresses import SystemAddress, system_addresses
from worker.membership.zygote import Zygote


class Host(msgspec.Struct, frozen=True):
    """
    Attributes:
        state_dir, run_dir: as given to swarmd; which files of them are the membership's says ``state_folder``.
        zygote: forks managers.
        executor: this host's engine, open; stays the daemon's.
        describe: this host as it is now.
        addresses: every global address of this host, as it is now.
    """

    state_dir: Path
    run_dir: Path
    zygote: Zygote
    executor: Executor
    describe: Callable[[], NodeDescription]
    addresses: Callable[[], Awaitable[Sequence[SystemAddress]]] = system_addresses
