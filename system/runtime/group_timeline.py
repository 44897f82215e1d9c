"""When each group entered which stage, kept by the group buffer; step_waits.py attributes a wait to stages with it.

A timeline is dropped with its group, except that groups which ended without training are kept for the wait in which
they ended: they held its place in the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from system.runtime.clock import now

GroupStage = Literal["worker", "generation", "scoring"]
STAGES: tuple[GroupStage, ...] = ("worker", "generation", "scoring")
_MAX_ENDED = 10_000  # where nobody asks for them


@dataclass(slots=True, kw_only=True)
class Stay:
    """A group was in `stage` from `start` to `end`, seconds."""

    stage: GroupStage
    start: float
    end: float = float("inf")


@dataclass(slots=True, kw_only=True)
class Attribution:
    """Seconds of a wait by the stage that was waited for; together at most the wait."""

    seconds: dict[GroupStage, float] = field(default_factory=dict)
    straggler_seconds: float = 0.0  # of all of these, those in which a single group of several was missing


class GroupTimeline:
    """Stays of the groups in flight; one event loop, no lock."""

    def __init__(self, *, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._stays: dict[int, list[Stay]] = {}
        self._ended: deque[list[Stay]] = deque(maxlen=_MAX_ENDED)

    def enter(self, group_id: int, stage: GroupStage | None) -> None:
        """The group is in another stage from now on; None: nothing of it is missing any more."""
        time = self._clock()
        stays = self._stays.setdefault(group_id, [])
        if stays:
            stays[-1].end = min(stays[-1].end, time)
        if stage is not None:
            stays.append(Stay(stage=stage, start=time))

    def end(self, group_id: int, *, is_trained: bool) -> None:
        """The group is no longer in flight."""
        self.enter(group_id, None)
        stays = self._stays.pop(group_id)
        if not is_trained:
            self._ended.append(stays)

    def attribute(self, group_ids: Iterable[int], *, start: float, end: float) -> Attribution:
        """What a batch of these groups was waited for from `start` to `end`; forgets the groups that ended."""
        wanted = [self._stays.get(group_id, []) for group_id in group_ids]
        attribution = attribute_wait(wanted, replaced=list(self._ended), start=start, end=end)
        self._ended.clear()
        return attribution


def attribute_wait(
    wanted: Sequence[Sequence[Stay]], *, replaced: Sequence[Sequence[Stay]], start: float, end: float
) -> Attribution:
    """The seconds from `start` to `end` by stage: each moment is shared equally by the groups missing then.

        seconds[s] = integral over [start, end] of n_s(t) / n(t) dt,    n(t) = sum over s of n_s(t)

    with n_s(t) the groups of `wanted`, the batch that came in the end, that were in stage s. A group that was leased
    in place of one that was dropped counts as that one until its lease: while some of `wanted` are not leased yet,
    groups of `replaced` stand for as many of them.
    """
    changes: list[tuple[float, GroupStage | None, int, int]] = []  # time, stage, of wanted, of replaced
    for stays in wanted:
        leased_at = stays[0].start if stays else start
        changes.append((max(start, leased_at), None, -1, 0))
        changes += [change for stay in stays for change in _changes(stay, start=start, end=end, of_wanted=1)]
    for stays in replaced:
        changes += [change for stay in stays for change in _changes(stay, start=start, end=end, of_wanted=0)]
    changes.sort(key=lambda change: change[0])
    missing, stand_in = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    attribution = Attribution(seconds=dict.fromkeys(STAGES, 0.0))
    num_unleased, time = len(wanted), start
    for next_time, stage, of_wanted, of_replaced in [*changes, (end, None, 0, 0)]:
        next_time = min(next_time, end)
        if next_time > time:
            is_last = len(wanted) > 1
            _share(attribution, missing, stand_in, num_unleased, seconds=next_time - time, may_straggle=is_last)
            time = next_time
        if stage is None:
            num_unleased += of_wanted
        else:
            missing[stage] += of_wanted
            stand_in[stage] += of_replaced
    return attribution


def _changes(
    stay: Stay, *, start: float, end: float, of_wanted: int
) -> list[tuple[float, GroupStage | None, int, int]]:
    first, last, of_replaced = max(start, stay.start), min(end, stay.end), 1 - of_wanted
    if first >= last:
        return []
    return [(first, stay.stage, of_wanted, of_replaced), (last, stay.stage, -of_wanted, -of_replaced)]


def _share(
    attribution: Attribution,
    missing: dict[GroupStage, int],
    stand_in: dict[GroupStage, int],
    num_unleased: int,
    *,
    seconds: float,
    may_straggle: bool,
) -> None:
    """Add a stretch of time in which nothing changes."""
    num_standing = sum(stand_in.values())
    weight = min(1.0, num_unleased / num_standing) if num_standing else 0.0
    counts = {stage: missing[stage] + weight * stand_in[stage] for stage in STAGES}
    total = sum(counts.values())
    if not total:
        return
    for stage, count in counts.items():
        attribution.seconds[stage] += seconds * count / total
    if may_straggle and total <= 1.0:
        attribution.straggler_seconds += seconds
