"""Where the mailbox of a run is: RUN/cluster.json, which names the Ray cluster, also one that the run started itself.

It is there from the run's start to its end; one that a killed run left behind is told by its controller's process.
Written by run_mailbox.py. Free of Ray, which reads once, when it is imported, how a cluster wants to be spoken to.
"""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from system.data.file_stamps import write_synced
from system.errors import ConfigError, CredenceError

NAMESPACE = "credence"
FILE = "cluster.json"
_CONNECT_SECONDS = 5.0
_AUTH_MODE = "RAY_AUTH_MODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAddress:
    """The content of RUN/cluster.json. `auth_mode` is Ray's: whether the cluster asks for a token; None: not known."""

    run: str
    ray_address: str
    namespace: str
    actor: str
    host: str
    pid: int  # of the controller
    auth_mode: str | None = None

    def prepare_ray(self) -> None:
        """Speak to the cluster as it asks for, unless the environment says how. Before Ray is imported."""
        if self.auth_mode is not None:
            os.environ.setdefault(_AUTH_MODE, self.auth_mode)


def write_address(folder: Path, *, ray_address: str, actor: str) -> None:
    """For the controller: its mailbox is there."""
    address = RunAddress(
        run=folder.name,
        ray_address=ray_address,
        namespace=NAMESPACE,
        actor=actor,
        host=socket.gethostname(),
        pid=os.getpid(),
        auth_mode=os.environ.get(_AUTH_MODE),
    )
    partial = folder / f".{FILE}"
    write_synced(partial, json.dumps(asdict(address), indent=2) + "\n")
    partial.replace(folder / FILE)


def remove_address(folder: Path) -> None:
    """The run has ended: nobody shall look for it."""
    (folder / FILE).unlink(missing_ok=True)


def find_run(run: str, *, address: str | None) -> RunAddress:
    """Where a run is, given by its folder, or by its name with the address of its cluster; somebody listens there.

    Raises ConfigError when there is no such run, CredenceError when it has ended or its cluster cannot be reached.
    """
    found = _find(run, address=address)
    _require_reachable(found)
    return found


def _find(run: str, *, address: str | None) -> RunAddress:
    folder = Path(run).expanduser()
    if folder.is_dir():
        found = _read(folder)
        return found if address is None else _at(address, run=found.run, actor=found.actor)
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None or "/" in run:
        raise ConfigError(
            "RUN",
            given=run,
            expected="the folder of a run, or the name of one with the address of its cluster",
            fix="e.g. runs/demo, or demo --address HOST:PORT",
        )
    return _at(address, run=run, actor=run)


def _at(address: str, *, run: str, actor: str) -> RunAddress:
    if not re.fullmatch(r"(ray://)?[\w.-]+:\d+", address):
        raise ConfigError(
            "--address",
            given=address,
            expected="HOST:PORT of the Ray cluster on one of its nodes, or ray://HOST:PORT from elsewhere",
            fix="e.g. --address 10.0.0.1:6379 or --address ray://10.0.0.1:10001",
        )
    return RunAddress(run=run, ray_address=address, namespace=NAMESPACE, actor=actor, host="", pid=0)


def _read(folder: Path) -> RunAddress:
    file = folder / FILE
    if not file.is_file():
        if (folder / "config.yaml").is_file():
            raise CredenceError(f"run {folder.name} has ended: {file} is gone. {_how_to_continue(folder)}")
        raise ConfigError("RUN", given=str(folder), expected="the folder of a run", fix="e.g. runs/demo")
    try:
        found = RunAddress(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CredenceError(f"{file} cannot be read: {error}") from error
    if found.host == socket.gethostname() and not _is_alive(found.pid):
        raise CredenceError(
            f"run {folder.name} has ended: its controller, process {found.pid}, is gone. {_how_to_continue(folder)}"
        )
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _how_to_continue(folder: Path) -> str:
    return f"Continue it with 'credence train --resume {folder}'"


def _require_reachable(found: RunAddress) -> None:
    """Ray itself would try for minutes."""
    host, _, port = found.ray_address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise CredenceError(
            f"the Ray cluster of run {found.run} at {found.ray_address} cannot be reached: {error.strerror or error}"
        ) from error
