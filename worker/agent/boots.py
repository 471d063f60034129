"""Which boots of this node the managers may know: by that a copy of its state folder is told from the folder itself.

Each start of the agent has a random nonce, under which it registers. The file ``boots`` has the last one that the
managers confirmed, and after it those that came since and may have reached them without an answer. A folder that was
copied, or taken from a backup, lacks the nonce of what ran since.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import structlog

from base.files import read_text, write_atomic
from base.machine import BOOTS_FILE

log = structlog.get_logger(__name__)

UNCONFIRMED_MAX = 32
"""A daemon that is started again and again, with no manager in sight, fills no file."""


class Boots:
    """Blocks: run in a thread. ``begin`` once, before the first registration.

    Attributes:
        nonce: of this boot.
        known: of those before that the managers may have as the last; empty when there is no file.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / BOOTS_FILE
        self.nonce = ""
        self.known: list[str] = []
        self._confirmed = ""

    def begin(self) -> None:
        """Make this boot's nonce, and write it down before anybody hears it.

        On a disk that takes nothing the last one serves again: a nonce that is not in the file would lock the node out.
        """
        text = read_text(self._path)
        lines = text.split("\n") if text is not None else []
        confirmed, unconfirmed = "".join(lines[:1]), [line for line in lines[1:] if line]
        self.known = [nonce for nonce in (confirmed, *unconfirmed) if nonce]
        self.nonce = secrets.token_hex(16)
        try:
            self._write(confirmed, [*unconfirmed[-UNCONFIRMED_MAX + 1 :], self.nonce])
        except OSError as error:
            log.warning("boot.not_saved", error=str(error))
            self.nonce = self.known[-1] if self.known else self.nonce
        self._confirmed = confirmed

    def confirm(self) -> None:
        """The managers have this boot as the last one."""
        if self._confirmed == self.nonce:
            return
        try:
            self._write(self.nonce, [])
        except OSError as error:  # it stands in the file already, among those that may have come through
            log.warning("boot.not_saved", error=str(error))
        else:
            self._confirmed = self.nonce

    def _write(self, confirmed: str, unconfirmed: list[str]) -> None:
        write_atomic(self._path, "\n".join([confirmed, *unconfirmed]).encode())
