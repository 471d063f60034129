"""/_ping, /version, /info, /system/df.

Source: moby ``daemon/server/router/system/system_routes.go``, ``daemon/info.go``, ``daemon/disk_usage.go`` (API 1.51).
"""

from __future__ import annotations

import asyncio
import os
import platform
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.engine_routes.host_facts import (
    go_architecture,
    helper_version,
    memory_total_bytes,
    operating_system,
    read_cgroup_facts,
    runc_warnings,
)
from api.engine_routes.swarm_block import swarm_block, swarm_status, warnings_of
from api.errors import BadRequestError, NotFoundError
from api.requests import json_response
from api.versions import MAX_VERSION, MIN_VERSION

DISK_USAGE_TYPES = ("container", "image", "volume", "build-cache")
HELPERS = ("runc", "conmon")


class SystemRoutes:
    """Handlers about the daemon and its host."""

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._engine, self._member, self._info = context.engine, context.member, context.info
        self._cgroup = read_cgroup_facts()
        self._helpers: dict[str, str] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.head("/_ping", self.ping),
            web.get("/_ping", self.ping, allow_head=False),
            web.get("/version", self.version),
            web.get("/info", self.info),
            web.get("/system/df", self.disk_usage),
            web.post("/build/prune", self.prune_build_cache),
            web.get("/plugins", self.plugins),
            web.get("/plugins/{name:.+}/json", self.plugin),
        ]

    async def ping(self, request: web.Request) -> web.Response:
        headers = {
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            # The classic builder: what the CLI falls back to without the buildx plugin.
            "Builder-Version": "1",
            "Swarm": swarm_status(self._member.info()),
        }
        return web.Response(body=b"" if request.method == "HEAD" else b"OK", headers=headers, content_type="text/plain")

    async def version(self, request: web.Request) -> web.Response:
        info, kernel, helpers = self._info, platform.release(), await self._helper_versions()
        engine = {
            "ApiVersion": str(MAX_VERSION),
            "MinAPIVersion": str(MIN_VERSION),
            "Arch": go_architecture(),
            "BuildTime": info.build_time,
            "Experimental": "false",
            "GitCommit": info.git_commit,
            "GoVersion": f"python{platform.python_version()}",
            "KernelVersion": kernel,
            "Os": "linux",
        }
        components = [{"Name": "Engine", "Version": info.version, "Details": engine}]
        components += [{"Name": name, "Version": found, "Details": {}} for name, found in helpers.items()]
        return json_response(
            {
                "Platform": {"Name": "swarmd"},
                "Components": components,
                "Version": info.version,
                "ApiVersion": str(MAX_VERSION),
                "MinAPIVersion": str(MIN_VERSION),
                "GitCommit": info.git_commit,
                "GoVersion": engine["GoVersion"],
                "Os": "linux",
                "Arch": go_architecture(),
                "KernelVersion": kernel,
                "BuildTime": info.build_time,
            }
        )

    async def info(self, request: web.Request) -> web.Response:
        states = Counter(summary.State for summary in self._engine.list(all=True))
        swarm, helpers, obstacles = await asyncio.gather(
            swarm_block(self._member), self._helper_versions(), self._engine.networks.warnings()
        )
        system, system_version = operating_system()
        answer = {
            "ID": self._info.daemon_id or stable_id(self._info.state),
            "Containers": states.total(),
            "ContainersRunning": states["running"] + states["restarting"],
            "ContainersPaused": states["paused"],
            "ContainersStopped": states["created"] + states["exited"] + states["dead"] + states["removing"],
            "Images": len(self._engine.images.list()),
            "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "KernelVersion": platform.release(),
            "OperatingSystem": system,
            "OSVersion": system_version,
            "OSType": "linux",
            "Architecture": platform.machine(),
            "NCPU": os.cpu_count() or 1,
            "MemTotal": memory_total_bytes(),
            "Swarm": swarm,
            "RuncCommit": {"ID": helpers["runc"]},
            "InitCommit": {"ID": ""},
            "ContainerdCommit": {"ID": ""},
        }
        answer |= self._limits() | self._settings()
        warnings = [
            *(
                *self._cgroup.warnings(swap_limit=self._engine.capacity.swap),
                *runc_warnings(helpers["runc"]),
                *self._info.warnings,
            ),
            *(*self._engine.warnings(), *obstacles, *warnings_of(swarm)),
        ]
        return json_response(answer | {"Warnings": warnings})

    def _limits(self) -> dict[str, object]:
        facts, capacity = self._cgroup, self._engine.capacity
        return {
            "MemoryLimit": facts.memory_limit,
            "SwapLimit": capacity.swap,
            "CpuCfsPeriod": facts.cpu_cfs_period,
            "CpuCfsQuota": facts.cpu_cfs_quota,
            "CPUShares": facts.cpu_shares,
            "CPUSet": facts.cpu_set,
            "PidsLimit": facts.pids_limit,
            "OomKillDisable": capacity.oom_kill_disable,
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": facts.version,
        }

    def _settings(self) -> dict[str, object]:
        info = self._info
        return {
            "Name": info.name,
            "ServerVersion": info.version,
            "DockerRootDir": str(info.state),
            "Labels": list(info.labels),
            "Debug": info.debug,
            "ExperimentalBuild": False,
            "Driver": "overlay2",
            "DriverStatus": [],
            "LoggingDriver": "json-file",
            "Plugins": {**self._engine.drivers(), "Authorization": None},
            "IPv4Forwarding": True,
            "BridgeNfIptables": False,
            "BridgeNfIp6tables": False,
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": len(asyncio.all_tasks()),
            "NEventsListener": 0,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": registry_config(info.insecure_registries, info.mirrors),
            "GenericResources": None,
            "HttpProxy": masked(os.environ.get("HTTP_PROXY", "")),
            "HttpsProxy": masked(os.environ.get("HTTPS_PROXY", "")),
            "NoProxy": os.environ.get("NO_PROXY", ""),
            "Runtimes": {"runc": {"path": "runc"}},
            "DefaultRuntime": "runc",
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "tini",
            "SecurityOptions": self._engine.security_options(),
        }

    async def _helper_versions(self) -> dict[str, str]:
        """Asked once; a helper that is upgraded under the daemon shows after its restart."""
        if self._helpers is None:
            self._helpers = dict(
                zip(HELPERS, await asyncio.gather(*(helper_version(name) for name in HELPERS)), strict=True)
            )
        return self._helpers

    async def prune_build_cache(self, request: web.Request) -> web.Response:
        """There is no build cache; ``docker system prune`` asks all the same."""
        return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})

    async def plugins(self, request: web.Request) -> web.Response:
        """None can be installed, so none is there."""
        return json_response([])

    async def plugin(self, request: web.Request) -> web.Response:
        """``docker inspect NAME`` asks here too, after containers, images, networks and volumes."""
        raise NotFoundError(f'plugin "{request.match_info["name"]}" not found')

    # ------------------------------------------------------------ disk usage

    async def disk_usage(self, request: web.Request) -> web.Response:
        """Only what ``type`` names, everything without it."""
        wanted = request.query.getall("type", DISK_USAGE_TYPES)
        for kind in wanted:
            if kind not in DISK_USAGE_TYPES:
                raise BadRequestError(f"unknown object type: {kind}")
        return json_response(await self._engine.disk_usage(wanted))


def masked(url: str) -> str:
    """A proxy's URL without what may be a password."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}xxxxx:xxxxx@{host}" if at and credentials else url


def stable_id(state: Path) -> str:
    """An ID for the daemon of this machine and state folder, the same after every restart."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = platform.node()
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{machine}:{state}"))


def registry_config(insecure: Sequence[str], mirrors: Sequence[str]) -> dict[str, object]:
    """``RegistryConfig`` of /info: which registries are spoken to without TLS, and the mirrors of the default one."""
    addresses = {name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False} for name in insecure}
    hub = {"Name": "docker.io", "Mirrors": list(mirrors), "Secure": True, "Official": True}
    return {
        "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
        "IndexConfigs": addresses | {"docker.io": hub},
        "Mirrors": list(mirrors) or None,
    }
