"""Reward terms computed again: those of rules in their sandbox, those of the policy where its weights are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from actors.rewards.worker import RewardWorker
from actors.scoring.worker import ScoringWorker
from system.commands.replay.findings import Finding, NotComputed, Pair, Tolerance, compare, pairs_of_records
from system.commands.replay.weights import FoundWeights, WeightsFinder, tolerance_of
from system.config.algorithms import evidence_of
from system.config.schema import Config, Device
from system.config.scorers import terms_on
from system.errors import CredenceError
from system.records import GroupScores, RewardTerm, ScoredGroup


def rules_again(groups: Sequence[ScoredGroup], *, config: Config) -> list[Finding]:
    """One line for each scorer that needs no weights; the verifier checks every answer again."""
    worker = RewardWorker(task=config.task, reward=config.reward)
    try:
        worker.start()
        scores = worker.score([(scored.group, False) for scored in groups])
    finally:
        worker.shutdown()
    names = [term.scorer for term in scores[0].terms[0]] if scores else []
    return [
        compare(f"reward: {name}", _term_pairs(groups, scores, scorer=name), tolerance=Tolerance()) for name in names
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScores:
    """What the scorers that need weights say again."""

    findings: list[Finding]
    not_computed: list[NotComputed]


def policy_scores_again(
    groups: Sequence[ScoredGroup], *, config: Config, finder: WeightsFinder, device: Device | None
) -> PolicyScores:
    """Terms of scoring replicas, and what the algorithm asked of them, by the weights that scored each group."""
    names = _policy_scorers(groups, config=config)
    result = PolicyScores(findings=[], not_computed=[])
    if not names:
        return result
    label = "reward: " + ", ".join(names)
    by_version: defaultdict[int, list[ScoredGroup]] = defaultdict(list)
    for scored in groups:
        by_version[max(term.policy_version for term in scored.terms[0] if term.scorer in names)].append(scored)
    done: list[ScoredGroup] = []
    scores: list[GroupScores] = []
    for version, members in sorted(by_version.items()):
        found = _weights_that_scored(version, config=config, finder=finder)
        if isinstance(found, str):
            result.not_computed.append(NotComputed(what=f"{label} ({len(members)} groups)", reason=found))
            continue
        worker = _replica(config, weights=found, device=device)
        done += members
        scores += [worker.score(scored.group, scored.evidence) for scored in members]
    if done:
        tolerance = tolerance_of(config.scorer.dtype)
        for name in names:
            result.findings.append(
                compare(f"reward: {name}", _term_pairs(done, scores, scorer=name), tolerance=tolerance)
            )
        if any(scored.evidence is not None for scored in done):
            result.findings.append(compare("evidence", _evidence_pairs(done, scores), tolerance=tolerance))
    return result


def _policy_scorers(groups: Sequence[ScoredGroup], *, config: Config) -> list[str]:
    """Scorers of the recorded terms that have weights, in their order."""
    rules = {term.scorer for scored in groups for row in scored.terms for term in row if term.policy_version < 0}
    return list(
        dict.fromkeys(
            term.scorer for scored in groups for row in scored.terms for term in row if term.scorer not in rules
        )
    )


def _weights_that_scored(version: int, *, config: Config, finder: WeightsFinder) -> FoundWeights | str:
    if config.scorer.mode == "ema" and version > 0:
        return "the moving average of scorer.mode=ema is not kept as a model"
    return finder.find(version)


def _replica(config: Config, *, weights: FoundWeights, device: Device | None) -> ScoringWorker:
    worker = ScoringWorker(
        name=f"replica of {weights.path}",
        scorer=replace(config.scorer, device=device or config.scorer.device),
        model=weights.model(config.model),
        rollout_temperature=config.rollout.temperature,
        terms=terms_on(config.reward, "policy"),
        task=config.task,
        evidence=evidence_of(config.algorithm),
    )
    try:
        worker.start()
    except OSError as error:
        raise CredenceError(f"{weights.path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return worker


def _term_pairs(groups: Sequence[ScoredGroup], scores: Sequence[GroupScores], *, scorer: str) -> Iterator[Pair]:
    """The value of a term, or a text where the verdict itself is another one."""
    for scored, again in zip(groups, scores, strict=True):
        for index, (old_row, new_row) in enumerate(zip(scored.terms, again.terms, strict=True)):
            place = f"group {scored.group_id}, completion {index}"
            old, new = _term(old_row, scorer), _term(new_row, scorer)
            if old and new and old.status == new.status == "ok" and old.reason == new.reason:
                yield Pair(place=place, recorded=old.value, again=new.value)
            else:
                yield Pair(place=place, recorded=_verdict(old), again=_verdict(new))


def _term(row: Iterable[RewardTerm], scorer: str) -> RewardTerm | None:
    return next((term for term in row if term.scorer == scorer), None)


def _verdict(term: RewardTerm | None) -> str:
    if term is None:
        return "no term"
    return f"invalid ({term.reason})" if term.status == "invalid" else f"{term.value:g} ({term.reason})"


def _evidence_pairs(groups: Sequence[ScoredGroup], scores: Sequence[GroupScores]) -> Iterator[Pair]:
    for scored, again in zip(groups, scores, strict=True):
        for index, (old, new) in enumerate(zip(scored.evidence or (), again.evidence or (), strict=True)):
            yield from pairs_of_records(old, new, place=f"group {scored.group_id}, completion {index}")
