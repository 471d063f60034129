"""A process that takes its own place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import fcntl, os, subprocess, sys, threading
from api.begin_anew import begin_anew

class Zygote:
    def close(self):
        child.stdin.close()

lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
before = open(sys.argv[2]).read() if os.path.exists(sys.argv[2]) else ""
now = f"{os.getpid()} {sys.argv[3]}"
if not before:
    open(sys.argv[2], "w").write(now)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    begin_anew("a test", Zygote())
try:
    os.waitpid(-1, os.WNOHANG)
    children = "children"
except ChildProcessError:
    children = "none"
print(before == now, children, threading.active_count(), len(os.listdir("/proc/self/task")))
"""


def test_it_is_the_same_command_and_process_with_nothing_of_before(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "lock"), str(tmp_path / "before"), "an argument"],
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == "True none 1 1"
