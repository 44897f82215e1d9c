"""Processes that came from another one are found and ended."""

import os
import subprocess
import sys
import time

from system.runtime.process_family import children_of, descendants_of, kill

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(100)
"""


def test_children_and_their_children_are_found_and_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert parent.pid in children_of(os.getpid())
        assert grandchild not in children_of(os.getpid())
        family = [process for process in descendants_of(os.getpid()) if process in (parent.pid, grandchild)]
        assert family == [parent.pid, grandchild]
        kill([*family, 2**22 + 1])  # one that is gone is no error
        assert parent.wait(30) == -9
        deadline = time.monotonic() + 30
        while _runs(grandchild):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
