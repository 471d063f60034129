"""Raft: the pysyncobj adapter, durable journal, mTLS transport, snapshots, membership (docs/design/consensus.md)."""

import socket

# On import pysyncobj 0.3.17 replaces ``socket.inet_ntop`` on every system by its substitute for old Windows
# (win_inet_pton.py, last line), and pyroute2 then reads no address any more. This package is imported before any of
# its modules can import the library, so the real function is put back here.
_inet_ntop = socket.inet_ntop

import pysyncobj  # noqa: E402  # after the function was kept

socket.inet_ntop = _inet_ntop

__all__: list[str] = []

del pysyncobj
