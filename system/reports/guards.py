"""Guards against reward hacking, from the metrics of every update. Called where the metrics of an update are final.

A policy that hacks its certainty grows more certain while it solves less, says less, rambles or repeats itself. Each
rule compares the mean of the latest updates with an earlier stretch, and asks for a large change as well as for one
that the noise between updates does not explain (accuracy of 32 prompts differs by 0.06 from update to update).

| rule | is on when |
|---|---|
| certainty_up_accuracy_down | certainty rose and accuracy fell, over the same time |
| certainty_up_distinct_down | certainty rose and the share of distinct bigrams fell |
| length_runaway | completions grew much longer, or are cut at the length limit; less suffices if accuracy fell |
| length_collapse | completions grew much shorter; less suffices if accuracy fell |
| repetition | completions repeat their own 4-grams more |

An update may have no accuracy (no labels): the rules then do without it. Where accuracy is known to have risen since
the beginning of the run, another style than at the beginning is no alarm: the policy found a better one, not a hack.

What to expect, from the simulated runs of the tests: collapses from a healthy plateau, and those that take 20 updates
or more to halve accuracy, are nearly always seen before it has halved. A collapse that halves accuracy within the first
dozen updates of a run is seen in time only every other time: ten updates are needed to know what healthy looks like.
Accuracy that falls while certainty and length stay where they are is no hacking, and no alarm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

from system.metrics import MetricDefinition
from system.reports.metric_changes import Change, HistoryState, Level, Row, UpdateHistory, level

Rule = Literal[
    "certainty_up_accuracy_down", "certainty_up_distinct_down", "length_runaway", "length_collapse", "repetition"
]
RULES: tuple[Rule, ...] = (
    "certainty_up_accuracy_down",
    "certainty_up_distinct_down",
    "length_runaway",
    "length_collapse",
    "repetition",
)
GUARD_METRICS = tuple(
    MetricDefinition(name=f"guard/{rule}", description=f"1 while the guard {rule} is on", reduction="last")
    for rule in RULES
)

CERTAINTY = "certainty"
# The first that a run has is used throughout: what is the reward matters more than what the learner sees.
CERTAINTY_SOURCES = ("reward/self_certainty_mean", "learner/self_certainty_nats")
ACCURACY = "train/accuracy"
DISTINCT = "completion/distinct_2"
REPETITION = "completion/repetition_4"
LENGTH = "completion/length_mean_tokens"
TRUNCATED = "completion/truncated_fraction"

_LABELS = {
    CERTAINTY: "self-certainty",
    ACCURACY: "accuracy",
    DISTINCT: "the share of distinct bigrams",
    REPETITION: "the share of repeated 4-grams",
    LENGTH: "mean length in tokens",
    TRUNCATED: "the share of completions cut at the length limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardThresholds:
    """Windows in updates, falls and rises relative to the earlier level, `_z` in standard errors of the difference."""

    min_updates: int = 10  # before the first comparison; until 2 `window`s the run is simply halved
    window: int = 8  # the latest updates, and the beginning of the run
    reference_window: int = 16  # the earlier stretch of fast changes, at most
    look_back: int = 40  # fast changes: from up to so many updates ago to now
    slow_window: int = 24  # slow changes: this many latest updates against the best such stretch of the run

    certainty_rise_z: float = 2.5
    certainty_rise: float = 0.01
    # Fast: accuracy has fallen, and the two z together leave no doubt. Neither is enough alone: a healthy policy that
    # is rewarded for certainty grows more certain by 5 % in 40 updates, and accuracy that does not change seems to
    # have fallen by 3 z now and then in hundreds of updates.
    accuracy_fall: float = 0.25
    accuracy_fall_z: float = 2.5
    together_certainty_rise: float = 0.03
    together_z: float = 11.3  # z of certainty minus z of accuracy; Stouffer's z of 8
    accuracy_alone_z: float = 4.0  # ... or this fall of accuracy, which is beyond doubt by itself
    slow_accuracy_fall: float = 0.3
    slow_accuracy_fall_z: float = 5.0

    distinct_fall: float = 0.25  # since the beginning of the run; as are the others below
    length_rise: float = 0.5
    length_fall: float = 0.3
    truncated_rise: float = 0.1  # of all completions
    repetition_rise: float = 0.1  # of all 4-grams
    repetition_relative_rise: float = 0.5  # and of what it was
    since_start_z: float = 4.0
    # Together with a fall of accuracy, over the last `look_back` updates. Noise alone makes short completions, of easy
    # prompts, more often right, and long ones less often: the second pair needs more evidence than the first.
    shorter_fall: float = 0.15
    shorter_fall_z: float = 3.0
    shorter_accuracy_fall: float = 0.15
    shorter_accuracy_fall_z: float = 1.5
    longer_rise: float = 0.25
    longer_rise_z: float = 4.0
    longer_accuracy_fall: float = 0.15
    longer_accuracy_fall_z: float = 3.0
    accuracy_gain_z: float = 2.0  # a rise since the beginning that silences what is compared with the beginning

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be > 0, got {getattr(self, field.name)}")
        if self.min_updates < 4 or self.look_back < self.window + self.reference_window:
            raise ValueError(
                f"min_updates must be >= 4 and look_back hold both windows, got {self.min_updates} and {self.look_back}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rule that is on. `message` is one sentence with the numbers that turned it on."""

    rule: Rule
    update: int  # at which it turned on
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardReport:
    alarms: tuple[Alarm, ...]  # on after this update
    new_alarms: tuple[Alarm, ...]  # those that turned on with it: to be sent once
    metrics: Mapping[str, float]  # of GUARD_METRICS: 1 = on


class AlarmState(TypedDict):
    rule: Rule
    update: int
    message: str
    metric: str  # watched for the end of the alarm
    before: float
    after: float


class LevelState(TypedDict):
    mean: float
    num_values: int
    last_update: int


class GuardState(TypedDict):
    """Plain JSON values."""

    history: HistoryState
    certainty_source: str
    best_accuracy: LevelState | None
    certainty_at_best: LevelState | None
    alarms: list[AlarmState]


class HackingGuards:
    """Feed it every update in order; it says which rules are on.

    A rule that turned on stays on until its metric has come back half of the way: the level before the change is kept,
    since a moving reference would take the collapsed policy for the normal one.
    """

    def __init__(self, thresholds: GuardThresholds | None = None) -> None:
        self._limits = thresholds or GuardThresholds()
        self._history = UpdateHistory(
            num_first=self._limits.window, num_recent=max(self._limits.look_back, 2 * self._limits.slow_window)
        )
        self._certainty_source = ""
        self._best_accuracy: Level | None = None
        self._certainty_at_best: Level | None = None
        self._alarms: dict[Rule, AlarmState] = {}

    def observe(self, values: Mapping[str, float], *, update: int) -> GuardReport:
        """The metrics of one more update, of which the guards take what they know. ValueError unless it is later."""
        self._history.append(self._known(values), update=update)
        self._update_best()
        is_judged = self._history.num_updates >= self._limits.min_updates
        findings: dict[Rule, Sequence[Change]] = {}
        for rule, changes in self._findings() if is_judged else ():
            findings.setdefault(rule, changes)
        self._alarms = {
            rule: alarm for rule, alarm in self._alarms.items() if rule in findings or not self._has_recovered(alarm)
        }
        new_alarms: list[Alarm] = []
        for rule, changes in findings.items():
            if rule not in self._alarms:
                self._alarms[rule] = _new_alarm(rule, changes, update=update)
                new_alarms.append(_alarm(self._alarms[rule]))
        return GuardReport(
            alarms=tuple(_alarm(self._alarms[rule]) for rule in RULES if rule in self._alarms),
            new_alarms=tuple(new_alarms),
            metrics={f"guard/{rule}": float(rule in self._alarms) for rule in RULES},
        )

    def state(self) -> GuardState:
        """Everything that `restore` needs, as plain JSON values."""
        return GuardState(
            history=self._history.state(),
            certainty_source=self._certainty_source,
            best_accuracy=_level_state(self._best_accuracy),
            certainty_at_best=_level_state(self._certainty_at_best),
            alarms=[alarm.copy() for alarm in self._alarms.values()],
        )

    def restore(self, state: GuardState) -> None:
        """Go on where `state` was taken, with the same thresholds."""
        self._history.restore(state["history"])
        self._certainty_source = state["certainty_source"]
        self._best_accuracy = None if state["best_accuracy"] is None else Level(**state["best_accuracy"])
        self._certainty_at_best = None if state["certainty_at_best"] is None else Level(**state["certainty_at_best"])
        self._alarms = {alarm["rule"]: alarm.copy() for alarm in state["alarms"]}

    def _known(self, values: Mapping[str, float]) -> dict[str, float]:
        if not self._certainty_source:
            self._certainty_source = next((name for name in CERTAINTY_SOURCES if name in values), "")
        known = {name: values[name] for name in (ACCURACY, DISTINCT, REPETITION, LENGTH, TRUNCATED) if name in values}
        if self._certainty_source in values:
            known[CERTAINTY] = values[self._certainty_source]
        return known

    def _update_best(self) -> None:
        """The best stretch of accuracy that ended before the latest `slow_window` updates began."""
        size = self._limits.slow_window
        rows = list(self._history.recent)[-2 * size :]
        if len(rows) < 2 * size:
            return
        accuracy = level(ACCURACY, rows=rows[:size])
        if accuracy is not None and (self._best_accuracy is None or accuracy.mean > self._best_accuracy.mean):
            self._best_accuracy, self._certainty_at_best = accuracy, level(CERTAINTY, rows=rows[:size])

    def _has_recovered(self, alarm: AlarmState) -> bool:
        """Whether the latest updates are back beyond the middle of the change that turned the alarm on."""
        now = level(alarm["metric"], rows=self._latest())
        middle = (alarm["before"] + alarm["after"]) / 2.0
        return now is not None and (now.mean > middle if alarm["after"] < alarm["before"] else now.mean < middle)

    def _findings(self) -> Iterator[tuple[Rule, Sequence[Change]]]:
        """Rules whose condition holds now, each with the changes that say so, the one to watch first."""
        limits = self._limits
        accuracy, certainty = self._recent_change(ACCURACY), self._recent_change(CERTAINTY)
        if accuracy and certainty and self._is_fast_hack(accuracy=accuracy, certainty=certainty):
            yield "certainty_up_accuracy_down", (accuracy, certainty)
        slow_accuracy, slow_certainty = self._slow_changes()
        if (
            slow_accuracy
            and slow_certainty
            and slow_accuracy.has_fallen(by=limits.slow_accuracy_fall, z=limits.slow_accuracy_fall_z)
            and slow_certainty.has_risen(by=limits.certainty_rise, z=limits.certainty_rise_z)
        ):
            yield "certainty_up_accuracy_down", (slow_accuracy, slow_certainty)
        length = self._recent_change(LENGTH)
        if (
            length
            and accuracy
            and length.has_fallen(by=limits.shorter_fall, z=limits.shorter_fall_z)
            and accuracy.has_fallen(by=limits.shorter_accuracy_fall, z=limits.shorter_accuracy_fall_z)
        ):
            yield "length_collapse", (length, accuracy)
        if (
            length
            and accuracy
            and length.has_risen(by=limits.longer_rise, z=limits.longer_rise_z)
            and accuracy.has_fallen(by=limits.longer_accuracy_fall, z=limits.longer_accuracy_fall_z)
        ):
            yield "length_runaway", (length, accuracy)
        gain = self._change_since_start(ACCURACY)
        if gain is None or gain.z < limits.accuracy_gain_z:
            yield from self._findings_since_start()

    def _is_fast_hack(self, *, accuracy: Change, certainty: Change) -> bool:
        limits = self._limits
        if not certainty.has_risen(by=limits.certainty_rise, z=limits.certainty_rise_z):
            return False
        if not accuracy.has_fallen(by=limits.accuracy_fall, z=limits.accuracy_fall_z):
            return False
        is_certain_together = (
            certainty.relative >= limits.together_certainty_rise and certainty.z - accuracy.z >= limits.together_z
        )
        return is_certain_together or accuracy.z <= -limits.accuracy_alone_z

    def _findings_since_start(self) -> Iterator[tuple[Rule, Sequence[Change]]]:
        limits, z = self._limits, self._limits.since_start_z
        certainty, distinct = self._change_since_start(CERTAINTY), self._change_since_start(DISTINCT)
        if (
            certainty
            and distinct
            and certainty.has_risen(by=limits.certainty_rise, z=limits.certainty_rise_z)
            and distinct.has_fallen(by=limits.distinct_fall, z=z)
        ):
            yield "certainty_up_distinct_down", (distinct, certainty)
        length, truncated = self._change_since_start(LENGTH), self._change_since_start(TRUNCATED)
        if length and length.has_risen(by=limits.length_rise, z=z):
            yield "length_runaway", (length,)
        if truncated and truncated.z >= z and truncated.after - truncated.before >= limits.truncated_rise:
            yield "length_runaway", (truncated,)
        if length and length.has_fallen(by=limits.length_fall, z=z):
            yield "length_collapse", (length,)
        repetition = self._change_since_start(REPETITION)
        if (
            repetition
            and repetition.has_risen(by=limits.repetition_relative_rise, z=z)
            and repetition.after - repetition.before >= limits.repetition_rise
        ):
            yield "repetition", (repetition,)

    def _latest(self) -> list[Row]:
        return list(self._history.recent)[-min(self._limits.window, self._history.num_updates // 2) :]

    def _recent_change(self, metric: str) -> Change | None:
        """From up to `look_back` updates ago."""
        latest = self._latest()
        earlier = list(self._history.recent)[-self._limits.look_back : -len(latest)][: self._limits.reference_window]
        return self._history.change(metric, before=level(metric, rows=earlier), after=level(metric, rows=latest))

    def _change_since_start(self, metric: str) -> Change | None:
        latest = self._latest()
        first = self._history.first[: self._history.num_updates - len(latest)]
        return self._history.change(metric, before=level(metric, rows=first), after=level(metric, rows=latest))

    def _slow_changes(self) -> tuple[Change | None, Change | None]:
        """Of accuracy and certainty, from the best stretch of accuracy."""
        rows = list(self._history.recent)[-self._limits.slow_window :]
        return (
            self._history.change(ACCURACY, before=self._best_accuracy, after=level(ACCURACY, rows=rows)),
            self._history.change(CERTAINTY, before=self._certainty_at_best, after=level(CERTAINTY, rows=rows)),
        )


def _new_alarm(rule: Rule, changes: Sequence[Change], *, update: int) -> AlarmState:
    parts = " and ".join(
        f"{_LABELS[change.metric]} {'rose' if change.after > change.before else 'fell'} "
        f"from {change.before:.3g} to {change.after:.3g}"
        for change in changes
    )
    watched = changes[0]
    return AlarmState(
        rule=rule,
        update=update,
        message=f"{rule} at update {update}: since update {watched.since_update} {parts}.",
        metric=watched.metric,
        before=watched.before,
        after=watched.after,
    )


def _alarm(state: AlarmState) -> Alarm:
    return Alarm(rule=state["rule"], update=state["update"], message=state["message"])


def _level_state(value: Level | None) -> LevelState | None:
    if value is None:
        return None
    return LevelState(mean=value.mean, num_values=value.num_values, last_update=value.last_update)
