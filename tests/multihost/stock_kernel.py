"""What runs inside the virtual machine of test_stock_kernel.py: three hosts, one service, everywhere running."""

from __future__ import annotations

from pathlib import Path

import docker

from tests.multihost.testbed import Testbed
from tests.support_images import busybox_rootfs
from tests.waiting import wait_until

DEADLINE_S = 240.0
"""The guest is emulated: ten times slower than the machine around it."""


def main() -> None:
    assert Path("/sys/fs/cgroup/cgroup.controllers").exists(), "this is no pure cgroup v2 host"
    testbed = Testbed(3, name="vm", network="192.168.96", deadline_s=DEADLINE_S)
    try:
        testbed.up()
        rootfs = busybox_rootfs()
        for host in testbed.hosts():
            testbed.import_image(host, rootfs)
        testbed.form_cluster(3)
        testbed.client(1).services.create(
            "busybox:latest",
            command=["sleep", "3600"],
            name="web",
            mode=docker.types.ServiceMode("replicated", 6),
            resources=docker.types.Resources(mem_limit=64 * 1024 * 1024),
        )
        wait_until(lambda: len(testbed.tasks("web")) == 6, "six tasks run", deadline_s=DEADLINE_S)
        for host in testbed.hosts():
            for container in testbed.client(host).containers.list():
                pid = testbed.client(host).api.inspect_container(container.id)["State"]["Pid"]
                limits = testbed.exec(
                    host, ["sh", "-c", f"cat /sys/fs/cgroup$(sed s/0:://  /proc/{pid}/cgroup)/memory.max"]
                )
                assert limits.strip() == str(64 * 1024 * 1024), limits
        print("three hosts run a service on a stock kernel")
    except BaseException:
        print(testbed.snapshot())
        for host in testbed.hosts():
            print(f"---- log of host {host}\n{testbed.log(host)[-3000:]}")
        raise
    finally:
        testbed.down()


if __name__ == "__main__":
    main()
