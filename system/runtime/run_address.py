"""Where the mailbox of a run is, and how another process reaches it.

RUN/cluster.json names the Ray cluster and the actor, also where the run started a Ray of its own. It is there from the
run's start to its end; one that a killed run left behind is told from a living one by its controller's process.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from system.data.file_stamps import write_synced
from system.errors import ConfigError, CredenceError
from system.runtime.run_control import RunControl

NAMESPACE = "credence"
FILE = "cluster.json"
Mailbox = Any  # Ray's handles have no static type

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_MAX_CALLS = 100  # of one mailbox at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAddress:
    """The content of RUN/cluster.json."""

    run: str
    ray_address: str
    namespace: str
    actor: str
    host: str
    pid: int  # of the controller


class Mailboxes:
    """Creates the mailbox of one run, and says in the run folder where it is. Blocks: to be called in a thread."""

    def __init__(self, run_folder: Path, *, cluster_address: str) -> None:
        self._run_folder = run_folder
        self._cluster_address = cluster_address
        self._mailbox: Mailbox | None = None

    def open(self) -> Mailbox:
        """A new mailbox in place of the last one, which was lost."""
        if self._mailbox is not None:
            ray.kill(self._mailbox)
        run = self._run_folder.name
        for number in itertools.count(1):
            name = run if number == 1 else f"{run}-{number}"
            try:
                self._mailbox = self._create(name)
            except ValueError:  # a run of this name in another folder, or the last mailbox, which is not gone yet
                continue
            break
        address = RunAddress(
            run=run,
            ray_address=self._ray_address(),
            namespace=NAMESPACE,
            actor=name,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        partial = self._run_folder / f".{FILE}"
        write_synced(partial, json.dumps(asdict(address), indent=2) + "\n")
        partial.replace(self._run_folder / FILE)
        return self._mailbox

    def close(self) -> None:
        """The run has ended: nobody shall look for it."""
        (self._run_folder / FILE).unlink(missing_ok=True)

    def _create(self, name: str) -> Mailbox:
        here = None
        if not self._is_remote_driver():
            # it goes when this node goes, as the controller does, and not with any other
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = ray.remote(RunControl).options(
            name=name, namespace=NAMESPACE, num_cpus=0, max_concurrency=_MAX_CALLS, scheduling_strategy=here
        )
        return options.remote()

    def _ray_address(self) -> str:
        return self._cluster_address if self._is_remote_driver() else ray.get_runtime_context().gcs_address

    def _is_remote_driver(self) -> bool:
        return self._cluster_address.startswith("ray://")


@contextmanager
def mailbox_of(run: str, *, address: str | None) -> Iterator[Callable[..., Any]]:
    """`ask(method, *arguments)` of the mailbox of a run, given by its folder, or by its name and an address.

    Raises ConfigError when there is no such run, CredenceError when it has ended or cannot be reached.
    """
    found = _find(run, address=address)
    _require_reachable(found)
    try:
        ray.init(address=found.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, RayError) as error:
        raise CredenceError(
            f"the Ray cluster at {found.ray_address} does not take this process in: {error}. Run the command on a node "
            "of the cluster, as a job (ray job submit), or with --address ray://HOST:10001 from elsewhere"
        ) from error
    try:
        mailbox = _get_actor(found)

        def ask(method: str, *arguments: Any) -> Any:
            try:
                return ray.get(getattr(mailbox, method).remote(*arguments), timeout=_ANSWER_SECONDS)
            except GetTimeoutError as error:
                raise CredenceError(
                    f"run {found.run} did not answer within {_ANSWER_SECONDS:g} s; what was asked still stands"
                ) from error
            except RayError as error:
                raise CredenceError(f"run {found.run} has ended meanwhile") from error

        yield ask
    finally:
        ray.shutdown()


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


def _get_actor(found: RunAddress) -> Mailbox:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return ray.get_actor(found.actor, namespace=NAMESPACE)
        except ValueError as error:
            if found.pid and time.monotonic() < deadline:  # it is just being made
                time.sleep(0.5)
                continue
            others = [
                each["name"]
                for each in ray.util.list_named_actors(all_namespaces=True)
                if each["namespace"] == NAMESPACE
            ]
            raise CredenceError(
                f"no run named {found.actor} is on the Ray cluster at {found.ray_address}: it has ended, or "
                f"never began. Runs there: {', '.join(sorted(others)) or 'none'}"
            ) from error
