"""The one place where metrics leave the run: metrics.jsonl and completions.jsonl in its folder, and W&B.

The files are the record; W&B is a view of it. What W&B does wrong (no network, full disk, dead service) is logged
once and counted, and never reaches the caller. Called by the controller, once per update.
"""

import json
import logging
import netrc
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

from system.data.group_files import rewards_as_json
from system.data.json_values import JsonValue
from system.errors import ConfigError
from system.metrics import X_AXIS_METRICS, MetricTable
from system.records import ScoredGroup
from system.reports.recorder import JsonLinesFile, finite, write_json_atomically

WandbMode = Literal["auto", "online", "offline", "disabled"]
ResolvedWandbMode = Literal["online", "offline", "disabled"]

LOGGER = logging.getLogger(__name__)
INIT_TIMEOUT_SECONDS = 30.0
FINISH_TIMEOUT_SECONDS = 10.0  # a stopped run has to be gone within 20 s; what is not uploaded stays on disk
COMPLETIONS_TABLE = "samples/completions"
# A lost service shows as ConnectionResetError, a full disk or a missing network as other OSErrors.
WANDB_FAILURES = (wandb.Error, OSError, MailboxClosedError, HandleAbandonedError, ServerResponseError)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSample:
    """One row of the completions table."""

    group_id: int
    index: int
    prompt: str
    completion: str
    reference_answer: str
    rewards: Mapping[str, JsonValue]  # by scorer, None where invalid
    num_tokens: int
    finish_reason: str


def sample_completions(groups: Sequence[ScoredGroup], *, count: int) -> list[CompletionSample]:
    """The first completion of `count` groups spread evenly over the groups by group_id; fewer when there are fewer."""
    ordered = sorted(groups, key=lambda scored: scored.group_id)
    count = min(count, len(ordered))
    chosen = [ordered[position * len(ordered) // count] for position in range(count)]
    return [
        CompletionSample(
            group_id=scored.group_id,
            index=trajectory.index,
            prompt=scored.group.prompt.text,
            completion=trajectory.text,
            reference_answer=scored.group.prompt.reference_answer,
            rewards=rewards_as_json(scored.terms[0]),
            num_tokens=trajectory.num_sampled,
            finish_reason=trajectory.finish_reason,
        )
        for scored in chosen
        for trajectory in scored.group.trajectories[:1]
    ]


def resolve_wandb_mode(mode: WandbMode) -> ResolvedWandbMode:
    """`auto` follows WANDB_MODE if that is set, else is online with an API key and offline without.

    Raises ConfigError for `online` without a key: W&B would ask for one and wait.
    """
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _has_netrc_key()
    if mode == "auto":
        match os.environ.get("WANDB_MODE", ""):
            case "offline" | "dryrun":
                return "offline"
            case "disabled":
                return "disabled"
            case _:
                return "online" if has_key else "offline"
    if mode == "online" and not has_key:
        raise ConfigError(
            "tracker.wandb_mode",
            given=mode,
            expected="an API key in WANDB_API_KEY or in the netrc file",
            fix="export WANDB_API_KEY, run `wandb login`, or set tracker.wandb_mode=offline",
        )
    return mode


class Tracker:
    """Metrics and sampled completions of one run. `log` writes one line and makes one W&B call."""

    def __init__(
        self,
        folder: Path,
        *,
        table: MetricTable,
        run_name: str,
        project: str,
        entity: str | None,
        wandb_mode: WandbMode,
        config: Mapping[str, object],
        resume_policy_version: int | None = None,
        init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
    ) -> None:
        """Starts anew, or continues after `resume_policy_version`: later lines are cut, the W&B run stays the same.

        `config` is what W&B shows as the run's configuration. Raises ConfigError as `resolve_wandb_mode`.
        """
        mode = resolve_wandb_mode(wandb_mode)
        folder.mkdir(parents=True, exist_ok=True)
        self._table = table
        self._folder = folder
        self._open_files(keep_until_version=resume_policy_version)
        self._wandb = _WandbRun(
            folder,
            run_name=run_name,
            project=project,
            entity=entity,
            config=config,
            init_timeout_seconds=init_timeout_seconds,
        )
        if mode != "disabled":
            self._wandb.start(mode=mode)

    @property
    def num_failures(self) -> int:
        """W&B calls that failed so far."""
        return self._wandb.num_failures

    @property
    def wandb_url(self) -> str | None:
        """Where the run can be watched; None offline."""
        return self._wandb.url

    def go_back(self, policy_version: int | None) -> None:
        """Cut the lines after `policy_version`, which will come again; None: all. W&B shows both continuations."""
        self._metrics.close()
        self._completions.close()
        self._open_files(keep_until_version=policy_version)

    def _open_files(self, *, keep_until_version: int | None) -> None:
        self._metrics = JsonLinesFile(self._folder / "metrics.jsonl", keep_until_version=keep_until_version)
        self._completions = JsonLinesFile(self._folder / "completions.jsonl", keep_until_version=keep_until_version)

    def log(self, metrics: Mapping[str, float], *, policy_version: int, bottleneck: str | None = None) -> None:
        """Writes the reduced metrics of one update. KeyError for a name that is not declared.

        Values that depend on the clock go to `timing`, so that `metrics` of two runs with one seed can be compared.
        `bottleneck` says what the update waited for, in the line and in the summary of the W&B run.
        """
        values = {**metrics, X_AXIS_METRICS["policy_version"]: float(policy_version)}
        if self.num_failures:
            values["tracker/num_failures"] = float(self.num_failures)
        reproducible: dict[str, JsonValue] = {}
        timing: dict[str, JsonValue] = {}
        for name in sorted(values):
            part = reproducible if self._table.find(name).is_reproducible else timing
            part[name] = float(values[name])
        line: dict[str, JsonValue] = {"policy_version": policy_version, "metrics": reproducible, "timing": timing}
        if bottleneck is not None:
            line["bottleneck"] = bottleneck
        self._metrics.append(line)
        x_axes = {name: X_AXIS_METRICS[self._table.find(name).x_axis] for name in values}
        self._wandb.log(values, x_axes=x_axes)
        if bottleneck is not None:
            self._wandb.summarise("bottleneck", bottleneck)

    def log_completions(self, samples: Sequence[CompletionSample], *, policy_version: int) -> None:
        """Adds samples to completions.jsonl and shows them as a table in W&B."""
        for sample in samples:
            self._completions.append({"policy_version": policy_version, **asdict(sample)})
        if samples:
            self._wandb.log_table(samples, policy_version=policy_version)

    def log_image(self, name: str, *, path: Path, policy_version: int) -> None:
        """Shows a PNG of the run folder in W&B."""
        self._wandb.log_image(name, path=path, policy_version=policy_version)

    def alert(self, title: str, *, text: str) -> None:
        """Tells whoever watches the run in W&B, by mail or chat as their account is set up."""
        self._wandb.alert(title, text=text)

    def close(self, *, exit_code: int = 0) -> None:
        """Ends the W&B run (offline in well under a second, online in at most 10 s) and closes the files."""
        self._wandb.finish(exit_code=exit_code)
        self._metrics.close()
        self._completions.close()


class _WandbRun:
    """The W&B run of a folder: its id and step continue over sessions, and no failure leaves this class."""

    def __init__(
        self,
        folder: Path,
        *,
        run_name: str,
        project: str,
        entity: str | None,
        config: Mapping[str, object],
        init_timeout_seconds: float,
    ) -> None:
        self._folder = folder
        self._run_name = run_name
        self._project = project
        self._entity = entity
        self._config = dict(config)
        self._init_timeout_seconds = init_timeout_seconds
        self._run: Any = None
        self._with_axis: set[str] = set()
        self._id, self._next_step = self._load_identity()
        self.num_failures = 0

    @property
    def url(self) -> str | None:
        return None if self._run is None or self._run.offline else self._run.url

    def start(self, *, mode: Literal["online", "offline"]) -> None:
        self._save_identity()
        try:
            self._run = self._open(mode=mode)
        except WANDB_FAILURES as error:
            self._count_failure(f"start {mode}", error=error)
            if mode == "online":
                wandb.teardown()  # its service holds the run's id until it ends
                self.start(mode="offline")

    def log(self, values: Mapping[str, float], *, x_axes: Mapping[str, str]) -> None:
        if self._run is None:
            return
        try:
            for name, axis in x_axes.items():
                self._set_axis(name, axis=axis)
            self._send({name: value for name, value in values.items() if finite(value) is not None})
        except WANDB_FAILURES as error:
            self._count_failure("log metrics", error=error)

    def summarise(self, name: str, text: str) -> None:
        """A text in the summary of the run, in place of an earlier one."""
        if self._run is None:
            return
        try:
            self._run.summary[name] = text
        except WANDB_FAILURES as error:
            self._count_failure("set the summary", error=error)

    def log_table(self, samples: Sequence[CompletionSample], *, policy_version: int) -> None:
        if self._run is None:
            return
        columns = [field.name for field in fields(CompletionSample)]
        rows = [[_cell(getattr(sample, column)) for column in columns] for sample in samples]
        self._log_media(
            COMPLETIONS_TABLE,
            make=lambda: wandb.Table(columns=columns, data=rows),
            policy_version=policy_version,
            attempted="log completions",
        )

    def log_image(self, name: str, *, path: Path, policy_version: int) -> None:
        if self._run is None:
            return
        self._log_media(
            name, make=lambda: wandb.Image(str(path)), policy_version=policy_version, attempted="log an image"
        )

    def _log_media(self, name: str, *, make: Callable[[], object], policy_version: int, attempted: str) -> None:
        axis = X_AXIS_METRICS["policy_version"]
        try:
            self._set_axis(name, axis=axis)
            self._send({name: make(), axis: policy_version})
        except WANDB_FAILURES as error:
            self._count_failure(attempted, error=error)

    def alert(self, title: str, *, text: str) -> None:
        if self._run is None:
            return
        try:
            self._run.alert(title=title, text=text, level=wandb.AlertLevel.WARN)
        except WANDB_FAILURES as error:
            self._count_failure("send an alert", error=error)

    def finish(self, *, exit_code: int) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except WANDB_FAILURES as error:
            self._count_failure("finish", error=error)
        self._run = None

    def _open(self, *, mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=self._project,
            entity=self._entity,
            name=self._run_name,
            id=self._id,
            dir=self._folder,
            config=self._config,
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_job_creation=True,
                init_timeout=self._init_timeout_seconds,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
            ),
        )

    def _send(self, values: Mapping[str, object]) -> None:
        # W&B drops what comes with a smaller step than its last one, and a resumed run goes back in policy versions.
        # So its own step only counts calls, over all sessions; the axes are metrics.
        step = max(self._next_step, self._run.step)
        self._run.log(dict(values), step=step, commit=True)
        self._next_step = step + 1
        self._save_identity()

    def _set_axis(self, name: str, *, axis: str) -> None:
        if name not in self._with_axis and name != axis:
            self._run.define_metric(name, step_metric=axis)
            self._with_axis.add(name)

    def _load_identity(self) -> tuple[str, int]:
        path = self._folder / "wandb.json"
        if not path.exists():
            return secrets.token_hex(6), 0
        saved = json.loads(path.read_text(encoding="utf-8"))
        return str(saved["id"]), int(saved["next_step"])

    def _save_identity(self) -> None:
        write_json_atomically(self._folder / "wandb.json", {"id": self._id, "next_step": self._next_step})

    def _count_failure(self, attempted: str, *, error: BaseException) -> None:
        if not self.num_failures:
            reason = " ".join(str(error).split())
            LOGGER.warning("W&B failed to %s (%s); the run goes on, metrics.jsonl has everything", attempted, reason)
        self.num_failures += 1


def _cell(value: object) -> object:
    return json.dumps(finite(dict(value)), sort_keys=True) if isinstance(value, Mapping) else value


def _has_netrc_key() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            credentials = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if credentials and credentials[2]:
            return True
    return False
