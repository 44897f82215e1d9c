"""A pool of killable child processes that run one pure check function under limits of computing time and memory.

Used by verifiers, for work on what a model wrote: it may hang, eat memory or crash the interpreter.
Children are fresh interpreters (no fork of a process that holds Ray, torch and threads), live for many
checks, and end with their parent.

    pending -- batch --> busy child -- verdict --> done
       ^                    | hang, out of memory, crash: kill it, that item is invalid, start another
       +--- other items ----+
"""

import math
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from actors.sandbox.process import SandboxProcess, encode_request
from system.records import RewardStatus

MAX_REQUEST_BYTES = 65_536
_MAX_BATCH_BYTES = 1_048_576
_MIN_MEMORY_MIB = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`status` is "invalid" when the check gave no answer: reason "timeout", "memory", "crash" or "too_long"."""

    status: RewardStatus
    value: float
    reason: str
    seconds: float


class Sandbox:
    """Runs `check(*request)` in child processes.

    `check` is "package.module:function" of a function that takes strings and returns
    `(status, value, reason)`; it is imported in the children only. One call of `run` at a time
    (others wait).

    Args:
        num_processes: children that work in parallel.
        timeout_seconds: computing time of one check, after which its child ends. A child that does not compute at
            all (`IdleClock`) is killed within two to three times this by wall clock.
        memory_limit_mib: address space of one child, interpreter and libraries included.
        max_checks_per_process: a child is replaced after about this many checks, which bounds what
            libraries' caches can hold.
        start_timeout_seconds: a child must be ready within this time.

    Raises:
        ValueError: an argument out of range.
        SandboxStartError: a child does not start; the message ends with what it printed.
    """

    def __init__(
        self,
        check: str,
        *,
        num_processes: int,
        timeout_seconds: float,
        memory_limit_mib: int,
        max_checks_per_process: int = 10_000,
        start_timeout_seconds: float = 60.0,
    ) -> None:
        if num_processes < 1 or max_checks_per_process < 1:
            raise ValueError(
                f"num_processes and max_checks_per_process must be >= 1, got {num_processes}, {max_checks_per_process}"
            )
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be > 0, got {timeout_seconds}")
        if memory_limit_mib < _MIN_MEMORY_MIB:
            raise ValueError(f"memory_limit_mib must be >= {_MIN_MEMORY_MIB}, got {memory_limit_mib}")
        self._check = check
        self._num_processes = num_processes
        self._timeout_seconds = timeout_seconds
        self._memory_limit_mib = memory_limit_mib
        self._max_checks_per_process = max_checks_per_process
        self._start_timeout_seconds = start_timeout_seconds
        self._lock = threading.Lock()
        self._is_closed = False
        self._children: list[SandboxProcess] = []
        self.num_started = 0  # children started so far, replacements included
        with ExitStack() as undo:
            undo.callback(self._kill_all)
            self._start_missing_children()
            for child in self._children:
                child.wait_until_ready()
            undo.pop_all()

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(child.process_id for child in self._children)

    def run(self, requests: Sequence[Sequence[str]]) -> list[Verdict]:
        """One verdict for each request, in the same order.

        A request longer than `MAX_REQUEST_BYTES` (as JSON) is invalid with reason "too_long" and is not sent.

        Raises:
            RuntimeError: the sandbox is closed.
            SandboxStartError: a replacement does not start.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("run() on a closed sandbox")
            batch = _Batch(requests)
            try:
                while not batch.is_done:
                    self._start_missing_children()
                    self._hand_out(batch)
                    self._collect(batch)
            finally:
                if not batch.is_done:
                    # Whatever interrupted us: an unread verdict must not be taken for the next batch's.
                    self._kill_all()
            return batch.ordered_verdicts()

    def close(self) -> None:
        """Kill all children and wait for them. Safe to call again."""
        with self._lock:
            self._is_closed = True
            self._kill_all()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start_missing_children(self) -> None:
        for child in list(self._children):
            # An idle child may have been killed from outside (out-of-memory killer, or because the thread
            # that started it has ended: PR_SET_PDEATHSIG is bound to the thread). No item is to blame.
            is_worn = child.num_checks >= self._max_checks_per_process
            if not child.items and (is_worn or not child.is_alive()):
                self._discard(child)
        while len(self._children) < self._num_processes:
            self._children.append(
                SandboxProcess(
                    self._check,
                    timeout_seconds=self._timeout_seconds,
                    memory_limit_mib=self._memory_limit_mib,
                    start_timeout_seconds=self._start_timeout_seconds,
                )
            )
            self.num_started += 1

    def _hand_out(self, batch: "_Batch") -> None:
        for child in self._children:
            if child.is_ready and not child.items and batch.pending:
                items = batch.take(math.ceil(len(batch.pending) / self._num_processes))
                child.submit(items, payloads=[batch.payloads[item] for item in items])

    def _collect(self, batch: "_Batch") -> None:
        """Wait for the next verdict, death or deadline, and act on all that have come."""
        if batch.is_done:
            return
        # Idle children are left out: nothing is expected of them.
        awaited = [child for child in self._children if child.items or not child.is_ready]
        poller = select.poll()
        for child in awaited:
            poller.register(child.response_fd, select.POLLIN)
        wait_seconds = min((child.deadline for child in awaited), default=0.0) - time.monotonic()
        poller.poll(max(0, math.ceil(wait_seconds * 1000)))
        for child in awaited:
            # Read even when the deadline has passed: the verdict may have come while this process slept.
            replies, death_reason = child.receive()
            for reply in replies:
                batch.decide(
                    reply.item,
                    Verdict(status=reply.status, value=reply.value, reason=reply.reason, seconds=reply.seconds),
                )
            if replies and not replies[-1].is_fit:
                batch.give_back(child.items)
                self._discard(child)
            elif death_reason is not None:
                self._lose(child, batch, reason=death_reason)
            elif child.items and time.monotonic() >= child.deadline and child.is_hanging():
                self._lose(child, batch, reason="timeout")

    def _lose(self, child: SandboxProcess, batch: "_Batch", *, reason: str) -> None:
        """`child` is dead or hangs: blame the item it was working on, give back the others."""
        if child.items:
            culprit = child.items.popleft()
            if reason == "crash" and not batch.has_crashed[culprit]:
                # Once may be chance (somebody killed the child); a crash has to repeat itself to count.
                batch.has_crashed[culprit] = True
                child.items.appendleft(culprit)
            else:
                seconds = time.monotonic() - child.check_started
                batch.decide(culprit, Verdict(status="invalid", value=0.0, reason=reason, seconds=seconds))
        batch.give_back(child.items)
        self._discard(child)

    def _discard(self, child: SandboxProcess) -> None:
        child.kill()
        self._children.remove(child)

    def _kill_all(self) -> None:
        for child in list(self._children):
            self._discard(child)


class _Batch:
    """The items of one `run`: what waits, what was decided. An item is the index of its request."""

    def __init__(self, requests: Sequence[Sequence[str]]) -> None:
        self.payloads = [encode_request(request) for request in requests]
        self.has_crashed = [False] * len(requests)
        self.pending: deque[int] = deque()
        self._verdicts: dict[int, Verdict] = {}
        for item, payload in enumerate(self.payloads):
            if len(payload) > MAX_REQUEST_BYTES:
                self.decide(item, Verdict(status="invalid", value=0.0, reason="too_long", seconds=0.0))
            else:
                self.pending.append(item)

    @property
    def is_done(self) -> bool:
        return len(self._verdicts) == len(self.payloads)

    def decide(self, item: int, verdict: Verdict) -> None:
        self._verdicts[item] = verdict

    def take(self, max_items: int) -> list[int]:
        items: list[int] = []
        num_bytes = 0
        while self.pending and len(items) < max_items and num_bytes < _MAX_BATCH_BYTES:
            items.append(self.pending.popleft())
            num_bytes += len(self.payloads[items[-1]])
        return items

    def give_back(self, items: deque[int]) -> None:
        self.pending.extendleft(reversed(items))
        items.clear()

    def ordered_verdicts(self) -> list[Verdict]:
        return [self._verdicts[item] for item in range(len(self.payloads))]
