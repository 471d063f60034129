"""``swarmd``: from the command line to a running daemon.

The order is what makes a start quick and the processes small (docs/architecture.md): options and checks, which need next
to nothing; what node and manager both stand on; the zygote, forked from that before any thread exists; then what the
node alone needs. The collector of cycles rests meanwhile: what is imported stays.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from api.options import parse_options
from api.startup import LOG_LEVEL_VARIABLE, UMASK, StartError, configure_logging, limit_arenas, own_state
from base import looked_into
from base.files import make_public_folder

RUN_MODE = 0o711
"""Who may speak to the API has to reach its socket; what else lies there has modes of its own."""

SHARED = (
    "grpc.aio",
    "cryptography.x509",
    "proto.control_pb2_grpc",
    "proto.raft_pb2_grpc",
    "proto.ca_pb2_grpc",
    "pki.tls",
)
"""What both processes of a host import, so that they share its pages."""


@contextlib.contextmanager
def without_host_certificates() -> Iterator[None]:
    """OpenSSL's default certificates are none.

    For the import of aiohttp, which reads them twice (two TLS contexts, 80 ms of CPU) for clients that name no context of
    their own; the registry client does. SSL_CERT_FILE is OpenSSL's own variable (SSL_CTX_load_verify_locations(3)).
    """
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        yield
    finally:
        del os.environ["SSL_CERT_FILE"]
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before


def main() -> None:
    """Entry point: exit status 1 with one line when the daemon cannot start."""
    options = parse_options()
    # Links in them are followed once and here: runc takes no path with a link, and mounts are found by their real one.
    options.state, options.run = os.path.realpath(options.state), os.path.realpath(options.run)
    gc.disable()
    looked_into.answer()
    os.umask(UMASK)
    try:
        from runtime.system import check_host

        problems = check_host()
        if problems:
            raise StartError("\n".join(str(problem) for problem in problems))
        with own_state(Path(options.state)) as lock:
            make_public_folder(Path(options.run), RUN_MODE)
            os.environ[LOG_LEVEL_VARIABLE] = options.log_level
            configure_logging(options.log_level)
            limit_arenas()
            for module in SHARED:
                importlib.import_module(module)
            from worker.membership.zygote import Zygote

            zygote = Zygote.fork("api.manager_process:be_manager", ours_alone=[lock])
            with without_host_certificates():
                import asyncio

                from api.daemon import serve
            gc.freeze()
            gc.enable()
            asyncio.run(serve(options, zygote))
    except (StartError, OSError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"swarmd: {line}\n")
        raise SystemExit(1) from None
