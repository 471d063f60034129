"""scripts/testbed: the command line of tests/multihost/testbed.py."""

from __future__ import annotations

import argparse
import os
import sys

from tests.multihost.testbed import Testbed, TestbedError, load


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="testbed")
    top.add_argument("--name", default="sw", help="several testbeds may be up when their names and networks differ")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    up.add_argument("count", type=int)
    up.add_argument("--managers", type=int)
    up.add_argument("--network", default="192.168.88")
    up.add_argument("--log-level", default="info")
    for name in ("env", "exec", "kill", "stop", "start", "cut", "heal"):
        command = commands.add_parser(name)
        command.add_argument("host", type=int)
        if name == "exec":
            command.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("status")
    story = commands.add_parser("story", help="what all daemons logged of these objects, in order of time")
    story.add_argument("ids", nargs="*")
    commands.add_parser("down")
    return top


def status(testbed: Testbed) -> None:
    alive = None
    for host in testbed.hosts():
        on, daemon = testbed.init_pid(host) is not None, bool(testbed.daemon_pids(host))
        print(f"host {host}  {testbed.ip(host)}  {'on' if on else 'off'}  swarmd {'runs' if daemon else 'is stopped'}")
        alive = host if daemon and alive is None else alive
    if alive is not None:
        for node in testbed.client(alive, timeout_s=25).nodes.list():
            manager = node.attrs.get("ManagerStatus", {})
            rank = "Leader" if manager.get("Leader") else manager.get("Reachability", "")
            print(f"node {node.id[:12]}  {node.attrs['Status']['Addr']}  {node.attrs['Status']['State']}  {rank}")


def main() -> None:
    args = parser().parse_args()
    if args.command == "up":
        testbed = Testbed(args.count, name=args.name, network=args.network, log_level=args.log_level)
        testbed.up()
        testbed.form_cluster(args.managers)
        status(testbed)
        return
    if args.command == "down":
        Testbed(0, name=args.name).down()
        return
    testbed = load(args.name)
    if args.command == "status":
        status(testbed)
        return
    if args.command == "story":
        print(testbed.story(args.ids))
        return
    if args.host not in testbed.hosts():
        raise TestbedError(f"no host {args.host}: there are hosts 1 to {testbed.count}")
    if args.command == "env":
        for key, value in testbed.env(args.host).items():
            print(f"export {key}={value}")
    elif args.command == "exec":
        words = args.words[1:] if args.words[:1] == ["--"] else args.words
        os.environ.update(testbed.env(args.host))
        command = testbed.inside(args.host, ["env", "-C", os.getcwd(), *words])
        os.execvp(command[0], command)
    else:
        getattr(testbed, args.command)(args.host)


try:
    main()
except TestbedError as error:
    print(f"testbed: {error}", file=sys.stderr)
    raise SystemExit(1) from None
