"""The mailbox of a run as a Ray actor: the controller opens it, and another process on the cluster asks it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from system.errors import CredenceError
from system.runtime.run_address import NAMESPACE, RunAddress, remove_address, write_address
from system.runtime.run_control import RunControl

Mailbox = Any  # Ray's handles have no static type

_FIND_SECONDS = 5.0  # for a mailbox that is just being made
_ANSWER_SECONDS = 30.0
_MAX_CALLS = 100  # of one mailbox at once


class Mailboxes:
    """Creates the mailbox of one run, and says in the run folder where it is. Blocks: to be called in a thread."""

    def __init__(self, run_folder: Path, *, cluster_address: str) -> None:
        self._run_folder = run_folder
        self._cluster_address = cluster_address
        self._mailbox: Mailbox | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def open(self) -> Mailbox:
        """A new mailbox in place of the last one, which was lost."""
        with self._lock:
            return self._open()

    def _open(self) -> Mailbox:
        if self._mailbox is not None:
            ray.kill(self._mailbox)
        for number in itertools.count(1):
            name = self._run_folder.name if number == 1 else f"{self._run_folder.name}-{number}"
            try:
                self._mailbox = self._create(name)
            except ActorAlreadyExistsError:  # a run of this name elsewhere, or the last mailbox, not gone yet
                continue
            break
        if not self._is_closed:
            write_address(self._run_folder, ray_address=self._ray_address(), actor=name)
        return self._mailbox

    def close(self) -> None:
        """The run has ended: nobody shall look for it."""
        with self._lock:
            self._is_closed = True
            remove_address(self._run_folder)

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
def mailbox_at(found: RunAddress) -> Iterator[Callable[..., Any]]:
    """`ask(method, *arguments)` of a run's mailbox. Raises CredenceError when it has ended or cannot be reached."""
    try:
        ray.init(address=found.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, RayError) as error:
        raise CredenceError(
            f"the Ray cluster at {found.ray_address} does not take this process in: {error}. Run the command on a node "
            "of the cluster, as a job (ray job submit), or with --address ray://HOST:10001 from elsewhere; where it "
            "asks for a token, with RAY_AUTH_MODE=token and the token"
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


def _get_actor(found: RunAddress) -> Mailbox:
    deadline = time.monotonic() + _FIND_SECONDS
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
