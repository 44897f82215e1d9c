"""The processes of a run that was started from outside, for benchmarks and tests that kill or count them."""

import subprocess

import psutil


def family_of(pid: int) -> list[psutil.Process]:
    """The process and all its descendants that are alive."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_family(process: "subprocess.Popen[bytes]") -> None:
    """All of them at once, and wait for the first."""
    for member in family_of(process.pid):
        member.kill()
    process.wait(30)
