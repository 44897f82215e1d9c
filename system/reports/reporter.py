"""All that a run tells about itself, in one place: terminal, metrics, sampled completions, recorded groups.

The controller calls it; nothing here decides anything. RUN_DIR/status.json says at any moment what the run is doing.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from system.algorithms.base import HeatMap, HeatMapFigure
from system.metrics import MetricSet, MetricTable
from system.records import Prompt, Sampling, ScoredGroup
from system.reports.bottleneck import bottleneck
from system.reports.display import Display
from system.reports.heat_maps import draw_heat_maps
from system.reports.metric_history import read_history
from system.reports.metrics import START_PHASE, UNKNOWN_TOKENS
from system.reports.pass_at_k_figure import draw_pass_at_k
from system.reports.recorder import Recorder
from system.reports.step_metrics import add_unknown_tokens
from system.reports.tracker import Tracker, sample_completions
from system.runtime.evaluator import EvaluationResult


class Reporter:
    """Fans each event out to the progress display, the tracker and the recorder."""

    def __init__(
        self,
        *,
        run_folder: Path,
        table: MetricTable,
        tracker: Tracker,
        recorder: Recorder,
        display: Display,
        completions_per_table: int,
        session_start: float,
        num_known_tokens: int,
    ) -> None:
        """`num_known_tokens`: entries of the tokenizer. `session_start`: time.perf_counter() when the command began."""
        self._run_folder = run_folder
        self._status_path = run_folder / "status.json"
        self._policy_version = 0
        self._phase = ""
        self._bottleneck: str | None = None
        self._table = table
        self._tracker = tracker
        self._recorder = recorder
        self._display = display
        self._completions_per_table = completions_per_table
        self._session_start = session_start
        self._num_known_tokens = num_known_tokens
        self._has_warned_of_unknown_tokens = False
        self._start_seconds: float | None = None  # of this session, until a line has them
        self._undrawn: tuple[int, HeatMapFigure, Sequence[HeatMap]] | None = None

    def new_metrics(self) -> MetricSet:
        return MetricSet(self._table)

    def enter_phase(self, name: str) -> None:
        """The run does something else from now on."""
        if self._phase == START_PHASE and name != START_PHASE:
            self._start_seconds = time.perf_counter() - self._session_start
        self._phase = name
        self._display.enter_phase(name)
        status = {
            "phase": name,
            "policy_version": self._policy_version,
            "since": time.time(),
            "bottleneck": self._bottleneck,
        }
        # renamed, so that a reader never sees half of it; not synced to disk, because it is worthless after a crash
        temporary = self._status_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(status))
        temporary.replace(self._status_path)

    def log_update(self, policy_version: int, *, metrics: MetricSet, groups: Sequence[ScoredGroup]) -> None:
        """One line of metrics.jsonl and one W&B call."""
        if self._start_seconds is not None:
            metrics.add(f"time/{START_PHASE}_seconds", self._start_seconds)
            self._start_seconds = None
        add_unknown_tokens(metrics, groups, num_known_tokens=self._num_known_tokens)
        values = metrics.reduce()
        self._warn_of_unknown_tokens(values.get(UNKNOWN_TOKENS, 0.0))
        self._policy_version = policy_version
        self._bottleneck = bottleneck(values) or self._bottleneck
        self._tracker.log(values, policy_version=policy_version, bottleneck=self._bottleneck)
        if any(name.startswith("eval/pass_at_") for name in values):
            self._show_pass_at_k(policy_version)
        self._recorder.record_groups(groups, policy_version=policy_version)
        self._display.update(policy_version, metrics=values)

    def show_heat_maps(
        self, panels: Sequence[HeatMap], *, figure: HeatMapFigure, policy_version: int, is_due: bool
    ) -> None:
        """What the algorithm draws of a few completions, as FOLDER/VERSION.png and at the tracker; kept until due."""
        self._undrawn = (policy_version, figure, panels) if panels else None
        if is_due:
            self.draw_newest_heat_maps()

    def draw_newest_heat_maps(self) -> None:
        """The heat maps that were kept last, if they are not drawn yet; at the end of a run those of its last batch."""
        if self._undrawn is None:
            return
        policy_version, figure, panels = self._undrawn
        self._undrawn = None
        folder = self._run_folder / figure.folder
        folder.mkdir(exist_ok=True)
        path = folder / f"{policy_version:08d}.png"
        title = f"{figure.folder.capitalize()} of policy version {policy_version}"
        draw_heat_maps(panels, figure=figure, path=path, title=title)
        self._tracker.log_image(figure.metric, path=path, policy_version=policy_version)

    def _show_pass_at_k(self, policy_version: int) -> None:
        path = self._run_folder / "pass_at_k.png"
        if draw_pass_at_k(read_history(self._run_folder / "metrics.jsonl"), path=path, title=self._run_folder.name):
            self._tracker.log_image("eval/pass_at_k", path=path, policy_version=policy_version)

    def _warn_of_unknown_tokens(self, share: float) -> None:
        if share > 0.0 and not self._has_warned_of_unknown_tokens:
            self._has_warned_of_unknown_tokens = True
            text = f"{share:.2%} of the sampled ids are {self._num_known_tokens} or more, which the tokenizer lacks"
            self.alert("Tokens without text", text=text)

    def go_back(self, policy_version: int | None) -> None:
        """The run continues after `policy_version` once more (None: from its beginning); later lines are cut."""
        self._policy_version = policy_version or 0
        self._undrawn = None
        self._tracker.go_back(policy_version)

    def alert(self, title: str, *, text: str) -> None:
        """Somebody should look at the run now: terminal and W&B."""
        self._display.warn(f"{title}: {text}")
        self._tracker.alert(title, text=text)

    def record_dead_letter(
        self, group_id: int, *, prompt: Prompt, sampling: Sampling, policy_version: int, errors: Sequence[str]
    ) -> None:
        """A group that killed its worker at every attempt; the run goes on without it."""
        self._display.warn(f"group {group_id} is given up after {len(errors)} lost workers: {errors[-1]}")
        self._recorder.record_dead_letter(
            group_id, prompt=prompt, sampling=sampling, policy_version=policy_version, errors=errors
        )

    def record_evaluation(self, result: EvaluationResult) -> None:
        """The table of sampled completions; the figures are logged with their update."""
        self._tracker.log_completions(
            sample_completions(result.groups, count=self._completions_per_table), policy_version=result.policy_version
        )
