"""Importing the consensus package leaves the standard library as it was."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import socket
before = socket.inet_ntop, socket.inet_pton
import manager.consensus.raft
assert (socket.inet_ntop, socket.inet_pton) == before, "the library's replacement is in force"
assert socket.inet_ntop(socket.AF_INET, b"\\x0a\\x00\\x00\\x01") == "10.0.0.1"
"""


def test_importing_the_library_replaces_nothing_in_socket() -> None:
    """In a process of its own: pysyncobj 0.3.17 patches ``socket.inet_ntop`` when it is first imported."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
