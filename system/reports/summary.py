"""What a finished run leaves to read: summary.json, a one-page summary.md and curves.png. Called by `credence train`.

Everything but the ledger and the running time comes from metrics.jsonl, so a resumed run is summed up as one.
"""

from pathlib import Path
from typing import Protocol

from system.data.json_values import JsonValue
from system.reports.curves import draw_curves
from system.reports.metric_history import HistoryLine, MetricHistory, read_history
from system.reports.metrics import PHASES, START_PHASE
from system.reports.recorder import write_json_atomically, write_text_atomically
from system.runtime.ledger import LedgerTotals

Summary = dict[str, JsonValue]


class RunOutcome(Protocol):
    """What the summary needs to know of how the run stands; the controller's Outcome has it."""

    @property
    def policy_version(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def canary_max_abs_diff(self) -> float: ...  # nats, over all weight syncs

    @property
    def after(self) -> object | None: ...  # the last evaluation, None when the run ended before it

    @property
    def stopped_by(self) -> str: ...


def write_summary(
    folder: Path,
    *,
    outcome: RunOutcome,
    ledger: LedgerTotals,
    seconds: float,
    best_checkpoint: tuple[str, float] | None = None,
) -> str:
    """Writes the three files into the run folder and returns the page as text.

    `seconds` is the running time over all sessions; `best_checkpoint` the name of the one that is kept for its
    evaluation, and that value. Figures of evaluations that did not take place are null.
    """
    history = read_history(folder / "metrics.jsonl")
    summary = summarise(history, outcome=outcome, ledger=ledger, seconds=seconds)
    summary |= dict(zip(("best_checkpoint", "best_checkpoint_value"), best_checkpoint or (None, None), strict=True))
    draw_curves(history, path=folder / "curves.png", title=folder.name)
    write_json_atomically(folder / "summary.json", summary)
    page = render_page(summary, folder=folder)
    write_text_atomically(folder / "summary.md", page)
    return page


def summarise(history: MetricHistory, *, outcome: RunOutcome, ledger: LedgerTotals, seconds: float) -> Summary:
    """The content of summary.json."""
    evaluations = history.lines_with("eval/accuracy_sampled")
    before = evaluations[0] if evaluations else None
    after = evaluations[-1] if evaluations and outcome.after is not None else None
    sampled, greedy = "eval/accuracy_sampled", "eval/accuracy_greedy"
    return {
        "accuracy_before": _value(before, name=sampled),
        "accuracy_after": _value(after, name=sampled),
        "accuracy_before_interval": _interval(before, name=sampled),
        "accuracy_after_interval": _interval(after, name=sampled),
        "accuracy_greedy_before": _value(before, name=greedy),
        "accuracy_greedy_after": _value(after, name=greedy),
        "accuracy_greedy_before_interval": _interval(before, name=greedy),
        "accuracy_greedy_after_interval": _interval(after, name=greedy),
        **{
            f"pass_at_{k}_{when}": _value(line, name=f"eval/pass_at_{k}")
            for k in _pass_at_ks(history)
            for when, line in (("before", before), ("after", after))
        },
        **{
            f"{name}_{when}": _value(line, name=f"eval/{name}")
            for name in ("length_mean_tokens", "tokens_per_solved", "reflection_words_mean")
            for when, line in (("before", before), ("after", after))
        },
        "evaluation_problems": _value(before, name="eval/num_problems"),
        "num_updates": outcome.policy_version,
        "stopped_by": outcome.stopped_by,
        "seconds": seconds,
        "completion_tokens": outcome.completion_tokens,
        "seconds_by_phase": _seconds_by_phase(history, seconds=seconds),
        "credit_seconds_by_phase": {
            name.removeprefix("credit/").removesuffix("_seconds"): history.total(name)
            for name in history.names(prefix="credit/")
            if name.endswith("_seconds")
        },
        "rollout_tokens_per_second_mean": history.mean("rollout/tokens_per_second"),
        "learner_tokens_per_second_mean": history.mean("learner/tokens_per_second"),
        "weight_sync_seconds_mean": history.mean("weight_sync/seconds"),
        "weight_sync_bytes": history.largest("weight_sync/bytes"),
        "canary_max_abs_diff": outcome.canary_max_abs_diff,
        "staleness_mean": history.mean("staleness/mean_versions"),
        "staleness_max": history.largest("staleness/max_versions"),
        "num_invalid_rewards": history.total("reward/num_invalid"),
        "invalid_rewards_by_reason": {
            name.removeprefix("reward/invalid_"): history.total(name)
            for name in history.names(prefix="reward/invalid_")
        },
        "alarms": _alarms(history),
        "learner_restarts": history.largest("learner/num_restarts"),
        "learner_recovery_seconds": history.total("learner/recovery_seconds"),
        "ledger": ledger.as_json(),
        "ledger_balanced": ledger.is_balanced,
    }


def render_page(summary: Summary, *, folder: Path) -> str:
    """summary.md: what was gained, what it took, and whether all is accounted for."""
    pass_at_ks = sorted(
        int(name.removeprefix("pass_at_").removesuffix("_before"))
        for name in summary
        if name.startswith("pass_at_") and name.endswith("_before")
    )
    lines = [
        f"# {folder.name}",
        "",
        f"{summary['num_updates']} updates in {_number(summary['seconds'], '{:,.0f}')} s "
        f"({_number(summary['completion_tokens'], '{:,.0f}')} completion tokens), ended by {summary['stopped_by']}.",
        "",
        f"Held-out accuracy on {_number(summary['evaluation_problems'], '{:.0f}')} problems "
        "(95 % interval over problems):",
        "",
        "| | before | after | gain (points) |",
        "|---|---|---|---|",
        _accuracy_row("sampled (pass@1)", summary=summary, name="accuracy"),
        _accuracy_row("greedy", summary=summary, name="accuracy_greedy"),
        *(_accuracy_row(f"pass@{k}", summary=summary, name=f"pass_at_{k}") for k in pass_at_ks),
        "",
        "| held-out completions | before | after |",
        "|---|---|---|",
        _before_after_row("tokens", summary=summary, name="length_mean_tokens", form="{:.1f}"),
        _before_after_row("tokens for each right one", summary=summary, name="tokens_per_solved", form="{:.1f}"),
        _before_after_row("reflection words", summary=summary, name="reflection_words_mean", form="{:.2f}"),
        "",
        *_cost_lines(summary),
        *_best_line(summary),
        "",
        "Curves: `curves.png`, `pass_at_k.png`. Every update: `metrics.jsonl`. "
        "Samples: `completions.jsonl`, `rollouts/`.",
        "",
    ]
    return "\n".join(lines)


def _seconds_by_phase(history: MetricHistory, *, seconds: float) -> dict[str, JsonValue]:
    """Start-up (of all sessions), the phases of the updates, and what is left of the running time, as `other`."""
    by_phase = {phase: history.total(f"time/{phase}_seconds") for phase in (START_PHASE, *PHASES)}
    return {**by_phase, "other": max(seconds - sum(by_phase.values()), 0.0)}


def _cost_lines(summary: Summary) -> list[str]:
    by_phase, credit = summary["seconds_by_phase"], summary["credit_seconds_by_phase"]
    ledger, invalid, alarms = summary["ledger"], summary["invalid_rewards_by_reason"], summary["alarms"]
    assert isinstance(by_phase, dict)
    assert isinstance(credit, dict)
    assert isinstance(ledger, dict)
    assert isinstance(invalid, dict)
    assert isinstance(alarms, dict)
    total = sum(by_phase.values()) or 1.0
    reasons = ", ".join(f"{name} {_number(count, '{:.0f}')}" for name, count in invalid.items()) or "none"
    signs = ", ".join(f"{rule} from update {version}" for rule, version in alarms.items()) or "none"
    balance = "balanced" if summary["ledger_balanced"] else "NOT BALANCED"
    return [
        "| time by phase | seconds | share |",
        "|---|---|---|",
        *(f"| {phase} | {value:,.1f} | {value / total:.0%} |" for phase, value in by_phase.items()),
        *(f"| credit, busy: {phase} | {value:,.1f} | {value / total:.0%} |" for phase, value in credit.items()),
        "",
        f"- Rollout {_number(summary['rollout_tokens_per_second_mean'], '{:,.0f}')} completion tokens/s, "
        f"learner {_number(summary['learner_tokens_per_second_mean'], '{:,.0f}')} tokens/s.",
        f"- Weight sync {_number(summary['weight_sync_seconds_mean'], '{:.2f}')} s for "
        f"{_number(summary['weight_sync_bytes'], '{:,.0f}')} bytes; largest canary difference "
        f"{_number(summary['canary_max_abs_diff'], '{:.2e}')} nats.",
        f"- Staleness mean {_number(summary['staleness_mean'], '{:.2f}')}, "
        f"max {_number(summary['staleness_max'], '{:.0f}')} versions.",
        f"- Invalid rewards: {reasons}.",
        f"- Signs of reward hacking: {signs}.",
        f"- Groups: {ledger['leased']} leased = {ledger['trained']} trained + {ledger['dropped']} dropped "
        f"+ {ledger['in_flight']} in flight ({balance}); {ledger['regenerated']} generated again.",
        *_restart_lines(summary, num_undone=ledger["undone"]),
    ]


def _restart_lines(summary: Summary, *, num_undone: JsonValue) -> list[str]:
    """What lost learner ranks cost; nothing where none was lost."""
    if not summary["learner_restarts"]:
        return []
    return [
        f"- The learner was started again {_number(summary['learner_restarts'], '{:.0f}')} times "
        f"({_number(summary['learner_recovery_seconds'], '{:.0f}')} s until the next update); "
        f"{num_undone} trained groups were undone with it and trained anew, none twice.",
    ]


def _best_line(summary: Summary) -> list[str]:
    name, value = summary.get("best_checkpoint"), summary.get("best_checkpoint_value")
    return [] if name is None else [f"- Best checkpoint: `checkpoints/{name}` ({_number(value, '{:.1%}')})."]


def _alarms(history: MetricHistory) -> dict[str, JsonValue]:
    """The guards against reward hacking that turned on, each with the first update at which it was on."""
    first_on: dict[str, JsonValue] = {}
    for name in history.names(prefix="guard/"):
        versions = [version for version, is_on in zip(*history.series(name), strict=True) if is_on]
        if versions:
            first_on[name.removeprefix("guard/")] = versions[0]
    return first_on


def _accuracy_row(label: str, *, summary: Summary, name: str) -> str:
    before, after = summary[f"{name}_before"], summary[f"{name}_after"]
    gain = f"{100 * (after - before):+.1f}" if isinstance(before, float) and isinstance(after, float) else "-"
    cells = [
        _number(summary[f"{name}_{when}"], "{:.1%}") + _interval_text(summary.get(f"{name}_{when}_interval"))
        for when in ("before", "after")
    ]
    return f"| {label} | {cells[0]} | {cells[1]} | {gain} |"


def _before_after_row(label: str, *, summary: Summary, name: str, form: str) -> str:
    cells = [_number(summary[f"{name}_{when}"], form) for when in ("before", "after")]
    return f"| {label} | {cells[0]} | {cells[1]} |"


def _interval_text(interval: JsonValue) -> str:
    if not isinstance(interval, list):
        return ""
    return f" ({_number(interval[0], '{:.1%}')} to {_number(interval[1], '{:.1%}')})"


def _number(value: JsonValue, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "-"


def _pass_at_ks(history: MetricHistory) -> list[int]:
    return sorted(int(name.removeprefix("eval/pass_at_")) for name in history.names(prefix="eval/pass_at_"))


def _value(line: HistoryLine | None, *, name: str) -> float | None:
    return None if line is None else line.values.get(name)


def _interval(line: HistoryLine | None, *, name: str) -> list[JsonValue] | None:
    low, high = _value(line, name=f"{name}_low"), _value(line, name=f"{name}_high")
    return None if low is None or high is None else [low, high]
