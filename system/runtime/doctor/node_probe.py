"""What is looked at on one node. Needs nothing but Python there: Ray carries this module to nodes without the project.

Used by nodes.py, in this process or as an actor on each node. As a program it is one rank of the collective round trip:

    python -c SOURCE RANK NUM_RANKS HOST PORT SECONDS
"""

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_COMPUTE_APPS = ("nvidia-smi", "--query-compute-apps=pid,used_memory,gpu_uuid", "--format=csv,noheader,nounits")
_SMI_SECONDS = 20.0


class NodeProbe:
    """One node. Every method answers with plain values."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def facts(self, folder: str | None) -> dict[str, Any]:
        """The fields of facts.NodeFacts, without `address` and `object_store_bytes`; `folder` is that of the runs."""
        shared_memory = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
        nearest = None if folder is None else _nearest(Path(folder))
        return {
            "python": platform.python_version(),
            "packages": installed_packages(),
            "shared_memory_bytes": shared_memory.total if shared_memory else 0,
            "shared_memory_free_bytes": shared_memory.free if shared_memory else 0,
            "max_open_files": _limit(resource.RLIMIT_NOFILE),
            "max_processes": process_limit(),
            "num_processes": num_threads(),
            "disk_free_bytes": None if nearest is None else shutil.disk_usage(nearest).free,
            "gpu_processes": gpu_processes(),
            "is_container": is_container(),
        }

    def clock(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def listen(self) -> int:
        """Accept connections from now on, at the port that is returned, and greet each."""
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
        self._listener = listener
        threading.Thread(target=_greet_all, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def reach(self, targets: list[tuple[str, int]], seconds: float) -> list[str | None]:
        """For each host and port: None when its greeting came, or what went wrong."""
        return [_reach(host, port, seconds=seconds) for host, port in targets]

    def sees(self, path: str, text: str) -> bool:
        """Whether this node finds `text` in the file."""
        try:
            return Path(path).read_text() == text
        except OSError:
            return False

    def free_port(self) -> int:
        """A port that nobody listens on here."""
        with socket.create_server(("", 0)) as probe:
            return int(probe.getsockname()[1])

    def all_reduce(self, source: str, rank: int, num_ranks: int, host: str, port: int, seconds: float) -> str | None:
        """One rank of the round trip, as a process of its own; None when it went well. `source`: this file."""
        arguments = [str(each) for each in (rank, num_ranks, host, port, seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                [sys.executable, "-c", source, *arguments], env=environment, capture_output=True, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer within {seconds:g} s"
        lines = done.stderr.strip().splitlines()
        return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def installed_packages() -> dict[str, str]:
    """Version by normalised name."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def process_limit() -> int:
    """Processes and threads that may run: of this user, and of the control group; -1: no limit."""
    limits = [_limit(resource.RLIMIT_NPROC)]
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    bounded = [limit for limit in limits if limit >= 0]
    return min(bounded, default=-1)


def num_threads() -> int:
    """Threads that run on this machine as far as it is visible."""
    number = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, ValueError):
            number += int(re.search(r"^Threads:\s*(\d+)", path.read_text(), re.MULTILINE)[1])  # type: ignore[index]
    return number


def gpu_processes() -> list[dict[str, Any]] | str:
    """Processes that hold GPU memory as the driver tells, each with what is known of it; or why nobody can tell."""
    if shutil.which(_COMPUTE_APPS[0]) is None:
        return "no nvidia-smi here"
    try:
        done = subprocess.run(_COMPUTE_APPS, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    if done.returncode != 0:
        return f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return [process | _process(process["pid"]) for process in parse_compute_apps(done.stdout)]


def parse_compute_apps(text: str) -> list[dict[str, Any]]:
    """Of nvidia-smi's lines "pid, MiB, GPU": pid, used_mib (0 where it is not told) and gpu."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdecimal():
            used = int(parts[1]) if parts[1].isdecimal() else 0
            found.append({"pid": int(parts[0]), "used_mib": used, "gpu": parts[2]})
    return found


def is_container() -> bool:
    """Whether process numbers of the driver may not be those that are seen here."""
    with suppress(OSError):
        if "kthreadd" in Path("/proc/2/comm").read_text():
            return False
    return True


def _process(pid: int) -> dict[str, Any]:
    """Whether it runs (a zombie does not), its title, its parent."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return {"is_running": False, "title": "", "parent": 0}
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    is_running = fields.get("State", "").strip()[:1] not in ("Z", "X")
    return {"is_running": is_running, "title": title[:80], "parent": int(fields.get("PPid", "0"))}


def _limit(kind: int) -> int:
    """The hard limit: Ray raises the other one to it at its start; -1: none."""
    hard = resource.getrlimit(kind)[1]
    return -1 if hard == resource.RLIM_INFINITY else hard


def _nearest(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def _greet_all(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"credence")


def _reach(host: str, port: int, *, seconds: float) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            greeting = connection.recv(16)
    except OSError as error:
        return str(error)
    return None if greeting == b"credence" else f"something else answers: {greeting!r}"


def _run_rank(rank: int, num_ranks: int, host: str, port: int, seconds: float) -> None:
    """Sum over the ranks' tensors; raises when the sum is wrong or somebody did not come."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    address = f"[{host}]" if ":" in host else host
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=num_ranks,
        timeout=timedelta(seconds=seconds),
    )  # fmt: skip
    values = torch.full((1024,), float(rank + 1))
    dist.all_reduce(values)
    expected = num_ranks * (num_ranks + 1) / 2
    if not bool((values == expected).all()):
        raise ValueError(f"the sum over {num_ranks} ranks is {float(values[0])}, not {expected}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _run_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
