"""N hosts on one machine, each with its own swarmd: what scripts/testbed and the multi-host tests share.

A host is a network namespace (eth0 on a bridge that sits in a namespace of its own, so that netfilter
rules of the root namespace never touch the underlay) plus a PID, mount and UTS namespace whose init is
`tini`. When that init is killed the kernel ends every process of the host, containers included, in the
same instant: power loss. `nsenter` is used and not `ip netns exec`, which mounts a fresh /sys and hides
the cgroup mounts.

Everything a testbed made can be found again from its name alone, so that `down` also cleans up after a
caller that was killed: namespaces by prefix, processes by their network namespace, cgroups by the parent
each daemon was given, files by folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docker

from tests.multihost import timeline
from tests.waiting import HOSTS_DEADLINE_S, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".venv" / "bin"
CGROUPS = Path("/sys/fs/cgroup")

T = TypeVar("T")


class TestbedError(Exception):
    """A host, a daemon or the cluster did not come up as it should."""

    __test__ = False


def run(command: Sequence[str], *, check: bool = True) -> str:
    """Run a command; return what it printed. Raises: TestbedError with its output."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if check and done.returncode:
        raise TestbedError(f"{shlex.join(command)}: {done.stdout.strip()}")
    return done.stdout


class Testbed:
    """``count`` hosts named 1..count.

    Args:
        name: short; the prefix of every namespace. One testbed of a name exists at a time.
        network: first three octets of the underlay; host i is ``network.i``.
        deadline_s: how long a host, a daemon or the cluster may take to come up.
        log_level: of the daemons; ``debug`` follows each task.
        folder: logs, sockets and state of the hosts; removed by ``down``.
    """

    __test__ = False

    def __init__(
        self,
        count: int,
        *,
        name: str = "sw",
        network: str = "192.168.88",
        folder: Path | None = None,
        deadline_s: float = HOSTS_DEADLINE_S,
        log_level: str = "info",
    ) -> None:
        self.count = count
        self.name = name
        self.network = network
        self.deadline_s = deadline_s
        self.log_level = log_level
        self.folder = folder or Path("/var/tmp/swarm-testbed") / name

    # ------------------------------------------------------------------ names

    def namespace(self, host: int) -> str:
        return f"{self.name}h{host}"

    @property
    def underlay(self) -> str:
        return f"{self.name}ul"

    def ip(self, host: int) -> str:
        return f"{self.network}.{host}"

    def directory(self, host: int) -> Path:
        return self.folder / f"h{host}"

    def socket(self, host: int) -> Path:
        return self.directory(host) / "engine.sock"

    def log(self, host: int) -> str:
        """Everything the host's daemon logged so far."""
        path = self.directory(host) / "swarmd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def cgroup_parent(self, host: int) -> str:
        return f"/swarm-testbed-{self.name}/h{host}"

    def client(self, host: int, *, timeout_s: float = 60) -> Any:
        """A docker-py client of the host's daemon."""
        return docker.DockerClient(base_url=f"unix://{self.socket(host)}", timeout=int(timeout_s), version="1.44")

    def env(self, host: int) -> dict[str, str]:
        url = f"unix://{self.socket(host)}"
        return {"DOCKER_HOST": url, "SWARM_HOST": url}

    # ------------------------------------------------------------------ life

    def up(self) -> None:
        """Make the hosts and start a daemon on each."""
        self.down()
        self.folder.mkdir(parents=True)
        (self.folder / "testbed.json").write_text(json.dumps({"count": self.count, "network": self.network}))
        run(["ip", "netns", "add", self.underlay])
        run(["ip", "-n", self.underlay, "link", "add", "ul0", "type", "bridge"])
        run(["ip", "-n", self.underlay, "addr", "add", f"{self.network}.254/24", "dev", "ul0"])
        run(["ip", "-n", self.underlay, "link", "set", "ul0", "up"])
        run(["ip", "-n", self.underlay, "link", "set", "lo", "up"])
        for host in self.hosts():
            self._wire(host)
        for host in self.hosts():
            self.start(host, wait=False)
        for host in self.hosts():
            self.wait_ready(host)

    def hosts(self) -> range:
        return range(1, self.count + 1)

    def _wire(self, host: int) -> None:
        namespace = self.namespace(host)
        run(["ip", "netns", "add", namespace])
        run(["ip", "-n", self.underlay, "link", "add", f"v{host}", "type", "veth", "peer", "eth0", "netns", namespace])
        run(["ip", "-n", self.underlay, "link", "set", f"v{host}", "master", "ul0", "up"])
        run(["ip", "-n", namespace, "addr", "add", f"{self.ip(host)}/24", "dev", "eth0"])
        run(["ip", "-n", namespace, "link", "set", "eth0", "up"])
        run(["ip", "-n", namespace, "link", "set", "lo", "up"])

    def init_pid(self, host: int) -> int | None:
        """PID of the host's init as seen from here, None when the host is off."""
        try:
            pid = int((self.directory(host) / "init.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        return pid if b"sleep\0infinity" in command else None

    def _power_on(self, host: int) -> None:
        self.heal(host)
        directory = self.directory(host)
        directory.mkdir(parents=True, exist_ok=True)
        ready = directory / "ready"
        ready.unlink(missing_ok=True)
        inner = (
            "mount -t proc proc /proc && mount -t tmpfs -o mode=755 tmpfs /run && "
            f"hostname {self.namespace(host)} && touch {shlex.quote(str(ready))} && exec tini -s -- sleep infinity"
        )
        with (directory / "init.log").open("ab") as log:
            holder = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.namespace(host)}"),
                    *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"),
                    *("sh", "-c", inner),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(ready.exists, f"host {host} boots", deadline_s=self.deadline_s, step_s=0.01)
        children = wait_until(lambda: run(["pgrep", "-P", str(holder.pid)]).split(), f"init of host {host}")
        (directory / "init.pid").write_text(children[0])
        wait_until(lambda: self.init_pid(host), f"init of host {host} runs", step_s=0.01)

    def inside(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` inside the host's namespaces. Raises: TestbedError when it is off."""
        pid = self.init_pid(host)
        if pid is None:
            raise TestbedError(f"host {host} is off")
        return ["nsenter", "--target", str(pid), "--mount", "--uts", "--net", "--pid", *command]

    def exec(self, host: int, command: Sequence[str], *, check: bool = True) -> str:
        """Run a command inside the host; return what it printed."""
        return run(self.inside(host, ["env", *(f"{k}={v}" for k, v in self.env(host).items()), *command]), check=check)

    def daemon_pids(self, host: int) -> list[int]:
        """PIDs (as seen from here) of swarmd on the host: node, zygote and manager."""
        found = []
        for pid in run(["ip", "netns", "pids", self.namespace(host)], check=False).split():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"swarmd\0" in command or b"worker.membership.zygote\0" in command:
                    found.append(int(pid))
        return found

    def container_pids(self, host: int) -> set[int]:
        """PIDs (as seen from here) of what runs in the host's containers, by their cgroups."""
        name = self.cgroup_parent(host).lstrip("/")
        top = CGROUPS / name if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "freezer" / name
        return {int(pid) for procs in top.rglob("cgroup.procs") for pid in procs.read_text().split()}

    def daemon_command(self, host: int) -> list[str]:
        """What is started on a host; a benchmark puts another engine here."""
        return [
            *(str(BIN / "swarmd"), "--state", str(self.directory(host) / "state"), "--run", "/run/swarm"),
            *("--host", f"unix://{self.socket(host)}", "--cgroup-parent", self.cgroup_parent(host)),
            *("--log-level", self.log_level),
        ]

    def start(self, host: int, *, wait: bool = True) -> None:
        """Boot the host if it is off, and start its daemon on the state it has."""
        if self.init_pid(host) is None:
            self._power_on(host)
        directory = self.directory(host)
        command = self.daemon_command(host)
        with (directory / "swarmd.log").open("ab") as log:
            subprocess.Popen(
                self.inside(host, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        if wait:
            self.wait_ready(host)

    def wait_ready(self, host: int) -> None:
        """Wait until the daemon answers. Raises: TestbedError with the end of its log."""

        def answers() -> bool:
            client = self.client(host, timeout_s=5)
            try:
                return bool(client.ping())
            finally:
                client.close()

        try:
            wait_until(answers, f"daemon of host {host} answers", deadline_s=self.deadline_s)
        except TimeoutError as error:
            raise TestbedError(f"{error}; its log ends: {self.log(host)[-2000:]}") from None

    def stop(self, host: int) -> None:
        """Stop the daemon as an administrator would; containers stay."""
        for pid in self.daemon_pids(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not self.daemon_pids(host), f"daemon of host {host} stops")

    def kill_daemon(self, host: int) -> None:
        """Kill every process of the daemon (node and manager) at once; containers stay."""
        for pid in self.daemon_pids(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.daemon_pids(host), f"daemon of host {host} ends")

    def kill(self, host: int) -> None:
        """Power loss: no packet leaves the host any more, and every process ends, in the same instant.

        The cable goes first: the kernel of a dead machine says no goodbye, that of killed processes sends FIN and RST.
        ``start`` puts it back.
        """
        self.cut(host)
        pid = self.init_pid(host)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        (self.directory(host) / "init.pid").unlink(missing_ok=True)
        thaw_cgroups(self.cgroup_parent(host))
        self._wait_empty(self.namespace(host))
        # A paused container is in no namespace named here, but in the PID namespace: its init goes when all have gone.
        wait_until(lambda: pid is None or not Path(f"/proc/{pid}").exists(), f"init of host {host} ends", step_s=0.01)

    def _wait_empty(self, namespace: str) -> None:
        def empty() -> bool:
            return not run(["ip", "netns", "pids", namespace], check=False).split()

        wait_until(empty, f"processes of {namespace} end", step_s=0.01)

    def cut(self, host: int) -> None:
        """Take the host's network cable out."""
        run(["ip", "-n", self.underlay, "link", "set", f"v{host}", "down"])

    def heal(self, host: int) -> None:
        run(["ip", "-n", self.underlay, "link", "set", f"v{host}", "up"])

    def part(self, host: int, others: Collection[int]) -> None:
        """Let no packet pass between the host and these others."""
        their = ", ".join(map(self.ip, others))
        chains = "\n".join(
            f"chain {name} {{ type filter hook {name} priority 0; ip {end}addr {{ {their} }} drop; }}"
            for name, end in (("input", "s"), ("output", "d"))
        )
        self.exec(host, ["nft", f"table inet testbed_part {{\n{chains}\n}}"])

    def unpart(self, host: int) -> None:
        self.exec(host, ["nft", "delete table inet testbed_part"])

    def broken_invariants(self) -> list[str]:
        """What the daemons' logs say of state that is not as it has to be (``SWARM_STORE_DEBUG``), by host."""
        lines = ((host, line) for host in self.hosts() for line in self.log(host).splitlines())
        return [f"h{host}: {line}" for host, line in lines if "InvariantError" in line or "MutatedObjectError" in line]

    def down(self) -> None:
        """Remove everything a testbed of this name made, whoever made it."""
        names = [line.split()[0] for line in run(["ip", "netns", "list"], check=False).splitlines() if line.strip()]
        mine = [
            n
            for n in names
            if n == self.underlay or (n.startswith(f"{self.name}h") and n[len(self.name) + 1 :].isdecimal())
        ]
        for name in mine:
            for pid in run(["ip", "netns", "pids", name], check=False).split():
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(pid), signal.SIGKILL)
        # Containers are in network namespaces of their own: the death of the host's init ends them, by PID namespace.
        thaw_cgroups(f"/swarm-testbed-{self.name}")
        for name in mine:
            self._wait_empty(name)
            run(["ip", "netns", "del", name], check=False)
        remove_cgroups(f"swarm-testbed-{self.name}")
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ cluster

    def form_cluster(self, managers: int | None = None, *, heartbeat_s: float = 5.0) -> None:
        """The first ``managers`` hosts become managers (3, or all when fewer), the others workers."""
        managers = min(3, self.count) if managers is None else managers
        first = self.client(1)
        period_ns = int(heartbeat_s * 1e9)
        first.swarm.init(advertise_addr=self.ip(1), listen_addr="0.0.0.0:2377", dispatcher_heartbeat_period=period_ns)
        first.swarm.reload()
        tokens = first.swarm.attrs["JoinTokens"]
        for host in self.hosts()[1:]:
            token = tokens["Manager" if host <= managers else "Worker"]
            self.client(host).swarm.join([f"{self.ip(1)}:2377"], token, advertise_addr=self.ip(host))
        wait_until(
            lambda: sum(node.attrs["Status"]["State"] == "ready" for node in first.nodes.list()) == self.count,
            "every node is ready",
            deadline_s=self.deadline_s,
        )

    def import_image(self, host: int, rootfs: bytes, name: str = "busybox:latest") -> None:
        repository, tag = name.split(":")
        self.client(host).api.import_image_from_data(rootfs, repository=repository, tag=tag)

    def tasks(self, service: str, *, via: int = 1, state: str = "running") -> list[dict[str, Any]]:
        """The service's tasks that should run and are observed in ``state``."""
        found = self.client(via, timeout_s=25).api.tasks(filters={"service": service, "desired-state": "running"})
        return [task for task in found if task["Status"]["State"] == state]

    def node_id(self, host: int) -> str:
        return str(self.client(host).info()["Swarm"]["NodeID"])

    def update_node(self, node_id: str, *, via: int = 1, **changes: Any) -> None:
        """Change fields of a node's spec; read again and retry when the object has changed in between (W06)."""

        def updated() -> bool:
            node = self.client(via).nodes.get(node_id)
            try:
                return bool(node.update({**node.attrs["Spec"], **changes}))
            except docker.errors.APIError as error:
                if "update out of sequence" in str(error):
                    return False
                raise

        end = time.monotonic() + HOSTS_DEADLINE_S
        while not updated():
            if time.monotonic() > end:
                raise TestbedError(f"node {node_id} changes all the time")

    def snapshot(self) -> str:
        """Nodes and tasks as the first host that answers sees them, for people who read a failure."""
        for host in self.hosts():
            with contextlib.suppress(Exception):
                client = self.client(host, timeout_s=5)
                lines = [
                    f"node {n.id[:12]} {n.attrs['Status']} {n.attrs.get('ManagerStatus', '')}"
                    for n in client.nodes.list()
                ]
                lines += [
                    f"task {task['ID'][:12]} service {task.get('ServiceID', '')[:12]} slot {task.get('Slot')} "
                    f"node {task.get('NodeID', '')[:12]} desired {task['DesiredState']} {task['Status']['State']} "
                    f"{task['Status'].get('Err', '')}"
                    for task in client.api.tasks()
                ]
                return "\n".join(lines)
        return "no host answers"

    def unsettled(self) -> set[str]:
        """IDs of the tasks that are not as they should be, as the first host that answers sees them."""
        for host in self.hosts():
            with contextlib.suppress(Exception):
                return {
                    task["ID"]
                    for task in self.client(host, timeout_s=5).api.tasks()
                    if task["DesiredState"] != task["Status"]["State"] or task["Status"].get("Err")
                }
        return set()

    def story(self, about: Collection[str] = (), *, since: str = "") -> str:
        """What the daemons of all hosts logged of these objects (``timeline.story``), one line an event."""
        entries = (entry for host in self.hosts() for entry in timeline.read(host, self.log(host)))
        return "\n".join(str(entry) for entry in timeline.story(entries, about, since=since))

    def leader(self, via: int) -> int:
        """Number of the host that leads, asked of host ``via``."""
        for node in self.client(via, timeout_s=25).nodes.list():
            if node.attrs.get("ManagerStatus", {}).get("Leader"):
                return self.host_of(node.attrs["Status"]["Addr"])
        raise TestbedError("no leader")

    def host_of(self, address: str) -> int:
        return int(address.rsplit(".", 1)[1])


def load(name: str) -> Testbed:
    """The running testbed of that name. Raises: TestbedError."""
    path = Path("/var/tmp/swarm-testbed") / name / "testbed.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise TestbedError(f"no testbed {name!r} is up: scripts/testbed up N") from None
    return Testbed(values["count"], name=name, network=values["network"])


def thaw_cgroups(name: str) -> None:
    """Let go what is paused in the cgroup ``name`` and below: on cgroup v1 a frozen process is not killed before.

    On v2 it is, and nothing is to be done.
    """
    for state in (CGROUPS / "freezer" / name.lstrip("/")).rglob("freezer.state"):
        with contextlib.suppress(OSError):  # gone meanwhile, or its parent's to say
            state.write_text("THAWED")


def remove_cgroups(name: str) -> None:
    """Remove the cgroup ``name`` and all below it in every hierarchy, once empty of processes."""
    parents = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else [p for p in CGROUPS.iterdir() if p.is_dir()]
    for parent in parents:
        top = parent / name
        if not top.is_dir():
            continue
        for path in sorted(top.rglob("*"), reverse=True):
            if path.is_dir():
                _remove_cgroup(path)
        _remove_cgroup(top)


def _remove_cgroup(path: Path) -> None:
    def gone() -> bool:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        return not path.exists()

    with contextlib.suppress(TimeoutError):
        wait_until(gone, f"cgroup {path} is empty")
