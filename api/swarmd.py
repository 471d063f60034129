"""``swarmd``: the daemon of one host, put together.

The order matters: options and checks, imports, the zygote (forked before any thread exists), then the event loop
with the engine, the node and the HTTP API.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version as package_version
from pathlib import Path

import structlog

from api.server import ApiServer, DaemonInfo, ListenError
from api.swarm_routes import engine_logs
from base.files import remove_leftovers, sync_folder
from manager.main import run as run_manager
from runtime.engine import Engine
from runtime.system import check_host
from worker.agent.container_spec import NodeFacts
from worker.agent.engine_executor import EngineExecutor
from worker.membership.description import describe
from worker.membership.node import Node
from worker.membership.participation import Host
from worker.membership.zygote import Zygote

log = structlog.get_logger(__name__)

DEFAULT_STATE = "/var/lib/swarm"
DEFAULT_RUN = "/run/swarm"
DEFAULT_HOST = "unix:///run/swarm/engine.sock"
LOCK_FILE = "swarmd.lock"
LOG_LEVEL_VARIABLE = "SWARMD_LOG_LEVEL"
_M_ARENA_MAX = -8


class StartError(Exception):
    """The daemon cannot start; the message is for people."""


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of swarmd."""
    parser = argparse.ArgumentParser(prog="swarmd", description="The container engine and cluster node of this host.")
    parser.add_argument("--state", default=DEFAULT_STATE, metavar="DIR", help=f"state folder (default {DEFAULT_STATE})")
    parser.add_argument("--run", default=DEFAULT_RUN, metavar="DIR", help=f"runtime folder (default {DEFAULT_RUN})")
    parser.add_argument(
        *("--host", "-H"),
        action="append",
        metavar="URL",
        help=f"where to serve the Engine API, may be repeated (default {DEFAULT_HOST})",
    )
    parser.add_argument(
        "--cgroup-parent", metavar="PATH", help="cgroup for the containers (default: from the state folder)"
    )
    parser.add_argument(
        "--bridge", default="swarm0", metavar="NAME", help="device of the default bridge (default swarm0)"
    )
    parser.add_argument("--bridge-subnet", default="172.17.0.0/16", metavar="CIDR", help="subnet of the default bridge")
    parser.add_argument(
        *("--insecure-registry",),
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="registry to speak plain HTTP with",
    )
    parser.add_argument("--registry-mirror", action="append", default=[], metavar="URL", help="mirror of docker.io")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="engine label of this host")
    parser.add_argument(
        *("--log-level",), default="info", choices=["debug", "info", "warning", "error"], help="(default info)"
    )
    parser.add_argument("--version", action="version", version=f"swarmd {package_version('swarm-orchestrator')}")
    return parser.parse_args(arguments)


def configure_logging(level: str) -> None:
    """JSON lines on stderr, inherited by the manager process."""
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


@contextlib.contextmanager
def own_state(state: Path) -> Iterator[int]:
    """Hold the state folder for this daemon alone; gives the lock's descriptor. Raises: StartError."""
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        sync_folder(state.parent)
        file = (state / LOCK_FILE).open("a+b")
    except OSError as error:
        raise StartError(f"cannot use the state folder {state}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise StartError(
                f"another swarmd (PID {holder}) runs on the state folder {state}: stop it, or give --state another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        remove_leftovers(state)
        yield file.fileno()


def default_cgroup_parent(state: Path) -> str:
    """``/swarm`` for the default state folder; any other folder has a name of its own, so daemons do not meet."""
    if str(state) == DEFAULT_STATE:
        return "/swarm"
    return f"/swarm-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"


def limit_arenas() -> None:
    """Two malloc arenas and not eight a core: gRPC's threads would keep a few megabytes each (mallopt(3))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def notify_systemd(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(message.encode())


async def serve(options: argparse.Namespace, zygote: Zygote) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state, run = Path(options.state), Path(options.run)
    labels = dict(label.partition("=")[::2] for label in options.label)
    engine = Engine(
        state=state / "engine",
        run=run / "engine",
        cgroup_parent=options.cgroup_parent or default_cgroup_parent(state),
        bridge=options.bridge,
        bridge_subnet=options.bridge_subnet,
        insecure_registries=options.insecure_registry,
        mirrors=options.registry_mirror,
    )
    version = package_version("swarm-orchestrator")
    await engine.open()
    executor = EngineExecutor(
        engine,
        run_dir=run / "payloads",
        node=lambda: NodeFacts(node.info().node_id, socket.gethostname(), "linux", platform.machine()),
    )
    await executor.open()
    node = Node(
        Host(
            state_dir=state,
            run_dir=run,
            zygote=zygote,
            executor=executor,
            describe=lambda: describe(engine_version=version, labels=labels),
        )
    )
    info = DaemonInfo(
        version=version,
        state=state,
        labels=options.label,
        insecure_registries=options.insecure_registry,
        mirrors=options.registry_mirror,
    )
    server = ApiServer(engine, node, info=info, local_logs=engine_logs(engine))
    try:
        await node.open()
        await server.start(options.host or [DEFAULT_HOST])
        log.info("daemon.started", version=version, pid=os.getpid(), hostname=platform.node())
        notify_systemd("READY=1")
        await stop.wait()
        notify_systemd("STOPPING=1")
        log.info("daemon.stopping")
    finally:
        await server.close()
        await node.close()
        await executor.close()
        await engine.close()


def be_manager(payload: bytes) -> int:
    """What the zygote runs in the processes it forks: a manager, logging as this daemon does."""
    configure_logging(os.environ[LOG_LEVEL_VARIABLE])
    return run_manager(payload)


def main() -> None:
    """Entry point: exit status 1 with one line when the daemon cannot start."""
    options = parse_options()
    options.state, options.run = str(Path(options.state).absolute()), str(Path(options.run).absolute())
    try:
        problems = check_host()
        if problems:
            raise StartError("\n".join(str(problem) for problem in problems))
        with own_state(Path(options.state)) as lock:
            Path(options.run).mkdir(mode=0o711, parents=True, exist_ok=True)
            os.environ[LOG_LEVEL_VARIABLE] = options.log_level
            configure_logging(options.log_level)
            limit_arenas()
            zygote = Zygote.fork("api.swarmd:be_manager", ours_alone=[lock])
            asyncio.run(serve(options, zygote))
    except (StartError, ListenError, OSError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"swarmd: {line}\n")
        raise SystemExit(1) from None
