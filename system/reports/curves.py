"""curves.png of a run: accuracy, length and entropy, gradient and divergence, where the time went.

A run that monitors self-certainty has two more: certainty beside accuracy, and how much the completions repeat. A run
with beliefs has two more: what each step is worth, and how much of an update's time the beliefs take.
"""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from system.reports.metric_history import MetricHistory
from system.reports.metrics import BELIEF_PHASES, BELIEF_VALUE_STEPS, PHASES

SMOOTHING_UPDATES = 10
CERTAINTY = "reward/self_certainty_mean"
PHASE_COLOURS = ("#4c72b0", "#ccb974", "#8c8c8c", "#dd8452", "#55a868", "#8172b3", "#c44e52")


def draw_curves(history: MetricHistory, *, path: Path, title: str) -> None:
    """Writes one PNG with its panels over policy versions; panels without data say so."""
    has_certainty = bool(history.series(CERTAINTY)[1])
    has_beliefs = bool(history.names(prefix="belief/"))
    num_rows = 2 + has_certainty + has_beliefs
    figure = Figure(figsize=(12, 4 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(num_rows, 2)
    _draw_accuracy(panels[0][0], history=history)
    _draw_pair(
        panels[0][1],
        history=history,
        title="Completions",
        left=("completion/length_mean_tokens", "length (tokens)"),
        right=("learner/entropy_nats", "entropy (nats)"),
    )
    _draw_pair(
        panels[1][0],
        history=history,
        title="Optimisation",
        left=("learner/gradient_norm", "gradient norm"),
        right=("learner/reference_kl_nats", "KL to reference (nats)")
        if history.largest("learner/reference_kl_nats")
        else ("learner/mismatch_kl_nats", "KL engine / learner (nats)"),
    )
    _draw_phases(panels[1][1], history=history)
    if has_certainty:
        _draw_pair(
            panels[2][0],
            history=history,
            title="Certainty and accuracy",
            left=(CERTAINTY, "self-certainty (nats)"),
            right=("train/accuracy", "training accuracy"),
        )
        _draw_pair(
            panels[2][1],
            history=history,
            title="Repetition",
            left=("completion/distinct_2", "distinct 2-grams"),
            right=("completion/repetition_4", "repeated 4-grams"),
        )
    if has_beliefs:
        _draw_family(
            panels[-1][0],
            history=history,
            names={f"belief/value_at_step_{step}": f"step {step}" for step in range(BELIEF_VALUE_STEPS)},
            title="Bayesian value of each step",
            label="value",
        )
        _draw_family(
            panels[-1][1],
            history=history,
            names={f"belief/{phase}_share": phase for phase in BELIEF_PHASES},
            title="Time for beliefs",
            label="share of the update's wall time",
        )
    figure.savefig(path, dpi=110)


def _draw_accuracy(axes: Axes, *, history: MetricHistory) -> None:
    versions, accuracy = history.series("train/accuracy")
    axes.plot(versions, accuracy, color="#4c72b0", alpha=0.25, linewidth=1)
    axes.plot(versions, _smoothed(accuracy), color="#4c72b0", label=f"training, mean of {SMOOTHING_UPDATES}")
    for kind, colour in (("sampled", "#c44e52"), ("greedy", "#55a868")):
        points = history.lines_with(f"eval/accuracy_{kind}")
        name = f"eval/accuracy_{kind}"
        axes.errorbar(
            [line.policy_version for line in points],
            [line.values[name] for line in points],
            yerr=[
                [max(line.values[name] - line.values.get(f"{name}_low", line.values[name]), 0) for line in points],
                [max(line.values.get(f"{name}_high", line.values[name]) - line.values[name], 0) for line in points],
            ],
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=f"held-out, {kind} (95 %)",
        )
    reward_versions, reward = history.series("reward/mean")
    lines = list(axes.get_lines())
    if reward and not _are_same(reward, accuracy):  # with the verifier alone they are one curve
        _right_axis(axes, versions=reward_versions, values=reward, label="reward")
    _finish(axes, title="Accuracy", label="accuracy", has_data=any(len(line.get_xdata()) for line in lines))
    if lines:
        axes.legend(fontsize=8, loc="lower right")


def _draw_pair(
    axes: Axes, *, history: MetricHistory, title: str, left: tuple[str, str], right: tuple[str, str]
) -> None:
    versions, values = history.series(left[0])
    axes.plot(versions, values, color="#4c72b0", alpha=0.25, linewidth=1)
    axes.plot(versions, _smoothed(values), color="#4c72b0")
    axes.yaxis.label.set_color("#4c72b0")
    _finish(axes, title=title, label=left[1], has_data=bool(values))
    right_versions, right_values = history.series(right[0])
    if right_values:
        _right_axis(axes, versions=right_versions, values=right_values, label=right[1])


def _draw_family(axes: Axes, *, history: MetricHistory, names: dict[str, str], title: str, label: str) -> None:
    """One smoothed line for each metric that has values; `names` maps metrics to their labels."""
    drawn = {legend: history.series(name) for name, legend in names.items() if history.series(name)[1]}
    for legend, (versions, values) in drawn.items():
        axes.plot(versions, _smoothed(values), label=legend)
    _finish(axes, title=title, label=label, has_data=bool(drawn))
    if drawn:
        axes.legend(fontsize=8, ncols=2)


def _draw_phases(axes: Axes, *, history: MetricHistory) -> None:
    lines = [line for line in history.lines if line.policy_version > 0]
    versions = [line.policy_version for line in lines]
    stacks = [[line.values.get(f"time/{phase}_seconds", 0.0) for line in lines] for phase in PHASES]
    if lines:
        axes.stackplot(versions, stacks, labels=PHASES, colors=PHASE_COLOURS, step="mid", linewidth=0)
        # One long evaluation would flatten all other updates.
        usual = sorted(sum(values) for values in zip(*stacks, strict=True))[int(0.9 * (len(lines) - 1))]
        axes.set_ylim(0, max(usual * 1.6, 1e-9))
        axes.legend(fontsize=8, loc="upper right", ncols=2)
    _finish(axes, title="Time by phase", label="seconds per update", has_data=bool(lines))


def _right_axis(axes: Axes, *, versions: list[int], values: list[float], label: str) -> None:
    right = axes.twinx()
    right.plot(versions, values, color="#dd8452", alpha=0.25, linewidth=1)
    right.plot(versions, _smoothed(values), color="#dd8452")
    right.set_ylabel(label, color="#dd8452")


def _finish(axes: Axes, *, title: str, label: str, has_data: bool) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("updates (policy version)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    if not has_data:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#8c8c8c")


def _are_same(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(left, right, strict=True))


def _smoothed(values: list[float]) -> list[float]:
    """Mean of each value and those before it, SMOOTHING_UPDATES at most."""
    windows = (values[max(0, end - SMOOTHING_UPDATES) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
