"""What a manager process runs: the zygote imports this when the node has answered for the first time."""

from __future__ import annotations

import os

from api.startup import LOG_LEVEL_VARIABLE, configure_logging
from manager.main import run


def be_manager(payload: bytes) -> int:
    """Be the manager that ``payload`` describes, logging as the daemon does; return the exit status."""
    configure_logging(os.environ[LOG_LEVEL_VARIABLE])
    return run(payload)
