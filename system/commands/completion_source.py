"""Where `credence select` and `credence certainty-report` get scored completions from, and where they write.

A configuration in which every completion is judged by the verifier and by self-certainty; held-out problems sampled
with it, or completions of a file scored with it; a folder that holds nothing yet. What loads torch or Ray is imported
where a model is used: completions that are scored already need neither.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from system.algorithms.rewards import SELF_CERTAINTY, VERIFIER, find_term
from system.config.load import load_config
from system.config.machine import check_machine
from system.config.schema import Config
from system.data.group_files import FiledGroup, group_as_json
from system.data.prompts import evaluation_prompts
from system.data.tasks import make_task
from system.errors import ConfigError
from system.records import ScoredGroup
from system.reports.recorder import JsonLinesFile

if TYPE_CHECKING:
    from system.interfaces import Tokenizer
    from system.runtime.sampler import OnGroup

COMPLETIONS_FILE = "completions.jsonl"


def load_monitored_config(
    paths: Sequence[str], *, overrides: Sequence[str], command: str, check_devices: bool
) -> Config:
    """The configuration with scoring replicas, whatever its rewards and algorithm are. Raises ConfigError."""
    if not paths:
        raise ConfigError(
            "CONFIG",
            given=" ".join(overrides),
            expected="at least one YAML file before the overrides",
            fix=f"e.g. credence {command} configs/demo.yaml",
        )
    # Nothing is trained: the weights of the run's own terms say nothing here.
    monitored = f"reward.terms=[{{scorer: {VERIFIER}}}, {{scorer: {SELF_CERTAINTY}, weight: 0}}]"
    return load_config(paths, [*overrides, monitored, "algorithm.name=grpo"], check_devices=check_devices)


def new_folder(output: str | None, *, default: Path, files: Sequence[str]) -> Path:
    """Creates and returns `output`, or `default` or the next free -2, -3, ...

    Raises ConfigError when `output` holds one of `files` already: nothing is ever overwritten.
    """
    if output is None:
        folder, number = default, 1
        while folder.exists():
            number += 1
            folder = default.with_name(f"{default.name}-{number}")
    else:
        folder = Path(output)
        taken = [name for name in files if (folder / name).exists()]
        if taken or (folder.exists() and not folder.is_dir()):
            raise ConfigError(
                "--output",
                given=output,
                expected=f"a folder without {', '.join(taken)}" if taken else "a folder",
                fix="give another one; nothing is overwritten",
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sample_held_out(config: Config, *, num_completions: int, folder: Path) -> tuple[ScoredGroup, ...] | signal.Signals:
    """`num_completions` for each of evaluation.num_problems_final problems of evaluation.split, scored.

    They are written to `folder` as they come, and stay there when a signal ends the work: then that is returned.
    """
    from system.runtime.held_out_groups import sample_groups

    prompts = evaluation_prompts(
        make_task(config.task),
        split=config.evaluation.split,
        limit=config.evaluation.num_problems_final,
        tokenizer=policy_tokenizer(config),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )

    async def work(on_group: OnGroup) -> None:
        await sample_groups(config, prompts=prompts, num_completions=num_completions, on_group=on_group)

    return _collect(config, work, path=folder / COMPLETIONS_FILE)


def score_again(
    config: Config, *, groups: Sequence[ScoredGroup], folder: Path
) -> tuple[ScoredGroup, ...] | signal.Signals:
    """The groups with new terms of all scorers, written to `folder` as in `sample_held_out`."""
    from system.runtime.held_out_groups import score_groups

    async def work(on_group: OnGroup) -> None:
        await score_groups(config, groups=groups, on_group=on_group)

    return _collect(config, work, path=folder / COMPLETIONS_FILE)


def _collect(
    config: Config, work: Callable[[OnGroup], Coroutine[Any, Any, None]], *, path: Path
) -> tuple[ScoredGroup, ...] | signal.Signals:
    from system.runtime.session import run_on_ray

    groups: list[ScoredGroup] = []
    with JsonLinesFile(path, keep_until_version=None) as file:

        def keep(scored: ScoredGroup) -> None:
            groups.append(scored)
            file.append(group_as_json(scored))

        try:
            stopped_by = run_on_ray(config, lambda: work(keep))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray is gone: nothing is left to be taken down
            if not groups:
                path.unlink()  # so that the same command can be given again
    if stopped_by is None:
        return tuple(groups)
    kept = f"; {path} holds {len(groups)} scored problems" if groups else ""
    print(f"Stopped by {stopped_by.name}{kept}.", file=sys.stderr)
    return stopped_by


def policy_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of model.path. Raises ConfigError when this machine lacks what the configuration names."""
    check_machine(config)
    from system.commands.run_inputs import load_tokenizer

    return load_tokenizer(config)


def is_scored(scored: ScoredGroup) -> bool:
    """Whether every completion has a verdict and a certainty; a completion without tokens has no certainty."""
    for index, trajectory in enumerate(scored.group.trajectories):
        certainty = find_term(scored, index, scorer=SELF_CERTAINTY)
        if find_term(scored, index, scorer=VERIFIER) is None or certainty is None:
            return False
        if certainty.status == "invalid" and trajectory.num_sampled:
            return False
    return True


def check_scorable(groups: Sequence[FiledGroup], *, config: Config, tokenizer: Tokenizer) -> None:
    """The policy can read every completion. Raises ConfigError that names FILE:LINE."""
    num_tokens = len(tokenizer)  # type: ignore[arg-type]  # every transformers tokenizer has a length
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    for filed in groups:
        for index, trajectory in enumerate(filed.scored.group.trajectories):
            largest = int(trajectory.token_ids.max())
            if largest >= num_tokens:
                raise ConfigError(
                    filed.where,
                    given=f"token id {largest} in completion {index}",
                    expected=f"ids below {num_tokens}, the vocabulary of model.path={config.model.path}",
                    fix="score it with the policy that wrote it, or give prompt and completions as plain text",
                )
            length = len(trajectory.token_ids)
            if length > longest:
                raise ConfigError(
                    filed.where,
                    given=f"{length} tokens in prompt and completion {index}",
                    expected=f"at most {longest} = rollout.max_prompt_tokens + rollout.max_completion_tokens",
                    fix="raise rollout.max_completion_tokens, or remove this line",
                )
