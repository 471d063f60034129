"""nftables by way of libnftables: one call is one atomic transaction in the kernel.

Bound by ctypes because Debian's Python module lives outside virtual environments and is this same binding; the ``nft``
command costs 3 ms a call, this 0.1 ms. The context belongs to the network namespace of the thread that makes it.
"""

from __future__ import annotations

import ctypes
import functools
import socket
from collections.abc import Callable

from runtime.errors import HostError

_GROUP_NFTABLES = 7
_DELETE_TABLE = 10 << 8 | 2
"""NFNLGRP_NFTABLES; NFT_MSG_DELTABLE of NFNL_SUBSYS_NFTABLES (linux/netfilter/nfnetlink.h, nf_tables.h)."""
_DATAGRAMS_A_TURN = 64


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise HostError("libnftables is missing: install the package libnftables1") from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("output", "error"):
        buffer = getattr(library, f"nft_ctx_buffer_{name}")
        buffer.argtypes = [ctypes.c_void_p]
        getter = getattr(library, f"nft_ctx_get_{name}_buffer")
        getter.argtypes, getter.restype = [ctypes.c_void_p], ctypes.c_char_p
    return library


def available() -> bool:
    """Whether the library is installed."""
    try:
        _library()
    except HostError:
        return False
    return True


def watch(table_gone: Callable[[], None]) -> Callable[[], None]:
    """Call ``table_gone`` on the event loop when a table was deleted in this thread's network namespace, or may have been.

    Returns what ends it. Raises OSError.
    """
    import asyncio  # here: small processes run rules, and have no use for these

    from runtime.kernel import netlink

    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    made = socket.socket(socket.AF_NETLINK, kind, netlink.NETFILTER)
    try:
        made.bind((0, 1 << (_GROUP_NFTABLES - 1)))
    except BaseException:
        made.close()
        raise
    loop = asyncio.get_running_loop()

    def readable() -> None:
        gone = False
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                gone |= any(kind == _DELETE_TABLE for kind, _, _ in netlink.decode(made.recv(65536)))
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more changes than the socket holds
                gone = True
        if gone:
            table_gone()

    def stop() -> None:
        loop.remove_reader(made.fileno())
        made.close()

    loop.add_reader(made.fileno(), readable)
    return stop


def run(commands: str) -> str:
    """Carry out commands in nft's language, all or none; returns what they print. Blocks for the kernel's time.

    Raises:
        HostError: the library is missing or the kernel refused; the message has nft's first line.
    """
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise HostError("nftables: out of memory")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, commands.encode()):
            text = library.nft_ctx_get_error_buffer(context) or b""
            raise HostError(f"nftables: {text.decode(errors='replace').strip().splitlines()[0] if text else 'failed'}")
        return (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")
    finally:
        library.nft_ctx_free(context)
