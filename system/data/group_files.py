"""Groups of completions as JSON lines: how a group is written, and how it is read back.

| a line that is                                             | comes from                                              |
|------------------------------------------------------------|---------------------------------------------------------|
| what `group_as_json` writes (token ids, text, rewards)     | RUN_DIR/rollouts/*.jsonl, completions.jsonl of `select` |
| {"prompt", "reference_answer", "completions": [text, ...]} | elsewhere; its texts are tokenised as they stand        |

What an algorithm asked of a group is written with it, under `evidence`. Called by the recorder, `credence select` and
`credence certainty-report`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from system.data.json_values import JsonValue
from system.errors import ConfigError
from system.records import (
    FinishReason,
    IntArray,
    PolicyVersions,
    Prompt,
    RewardTerm,
    ScoredGroup,
    Trajectory,
    TrajectoryGroup,
)

UNKNOWN_POLICY_VERSION = -1  # of tokens whose line does not say which weights wrote them
_MAX_TOKEN_ID = 2**31 - 1
_FORMAT = (
    "a group as in RUN_DIR/rollouts/*.jsonl, or "
    '{"prompt": "...", "reference_answer": "...", "completions": ["...", ...]}'
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FiledGroup:
    """A group and where it stands. `scored.terms` holds the terms that the line has: none for plain text."""

    where: str  # FILE:LINE
    scored: ScoredGroup


def group_as_json(scored: ScoredGroup) -> dict[str, JsonValue]:
    """A scored group for reading: token ids and log-probabilities beside the text, evidence where it has some."""
    group = scored.group
    record: dict[str, JsonValue] = {
        "group_id": group.group_id,
        "prompt_id": group.prompt.prompt_id,
        "prompt": group.prompt.text,
        "prompt_token_ids": group.prompt.token_ids.tolist(),
        "reference_answer": group.prompt.reference_answer,
        "completions": [
            _trajectory_as_json(trajectory, terms=terms)
            for trajectory, terms in zip(group.trajectories, scored.terms, strict=True)
        ],
    }
    if scored.evidence is not None:
        record["evidence"] = [each.as_json() for each in scored.evidence]
    return record


def rewards_as_json(rewards: Iterable[RewardTerm]) -> dict[str, JsonValue]:
    """Value by scorer, None where it is invalid."""
    return {term.scorer: term.value if term.status == "ok" else None for term in rewards}


def read_groups(path: Path, *, task_name: str, tokenise: Callable[[str], Sequence[int]]) -> list[FiledGroup]:
    """All groups of a file, in its order; blank lines are passed over.

    `tokenise` is called for lines of plain text only. Their completions are taken to have ended by themselves
    (finish reason "stop") and have no end token. Raises ConfigError that names FILE:LINE.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028 inside a text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            str(path), given=reason, expected="a readable JSON-lines file", fix="check the path"
        ) from error
    groups = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            scored = _read_group(
                _object_of(line, where=where), number=number, path=path, task_name=task_name, tokenise=tokenise
            )
            groups.append(FiledGroup(where=where, scored=scored))
    if not groups:
        raise ConfigError(
            str(path), given="no line", expected=f"at least one line with {_FORMAT}", fix="give another file"
        )
    return groups


class _Fields:
    """The fields of one JSON object; whatever is missing or of another type is a ConfigError that names the line."""

    def __init__(self, record: Mapping[str, Any], *, where: str, inside: str = "") -> None:
        self._record = record
        self._where = where
        self._inside = inside

    def __contains__(self, name: str) -> bool:
        return name in self._record

    def error(self, name: str, *, expected: str) -> ConfigError:
        given = f"{self._inside}{name} = {_short(self._record[name])}" if name in self else f"no {self._inside}{name}"
        return ConfigError(self._where, given=given, expected=expected, fix=f"fix this line; it is to hold {_FORMAT}")

    def text(self, name: str) -> str:
        value = self._record.get(name)
        if not isinstance(value, str):
            raise self.error(name, expected="a text")
        return value

    def integer(self, name: str) -> int:
        value = self._record.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, expected="an integer")
        return value

    def integers(self, name: str, *, at_least: int = 0) -> IntArray:
        """int32[n]."""
        values = self._record.get(name)
        if not isinstance(values, list) or not all(
            isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= _MAX_TOKEN_ID
            for value in values
        ):
            raise self.error(name, expected=f"a list of integers of at least {at_least}")
        return np.array(values, dtype=np.int32)

    def numbers(self, name: str, *, count: int) -> list[float]:
        """`count` numbers; null becomes NaN."""
        values = self._record.get(name)
        is_list = isinstance(values, list) and all(value is None or _is_number(value) for value in values)
        if not is_list or not isinstance(values, list) or len(values) != count:
            raise self.error(name, expected=f"a list of {count} numbers, one for each sampled token")
        return [math.nan if value is None else float(value) for value in values]

    def spans(self, name: str, *, end: int) -> list[tuple[int, int]]:
        """[start, end) pairs that ascend without overlap within 1 .. `end`: nothing predicts the first token."""
        values = self._record.get(name)
        expected = f"a list of [start, end) pairs that ascend within 1 and {end}"
        if not isinstance(values, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(type(edge) is int for edge in pair) for pair in values
        ):
            raise self.error(name, expected=expected)
        edges = [1, *(edge for pair in values for edge in pair), end]
        if any(left > right for left, right in pairwise(edges)):
            raise self.error(name, expected=expected)
        return [(start, end) for start, end in values]

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._record.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, expected="an object")
        return value

    def items(self, name: str) -> list[Any]:
        values = self._record.get(name)
        if not isinstance(values, list) or not values:
            raise self.error(name, expected="a list with at least one completion")
        return values


def _object_of(line: str, *, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(
            where,
            given=line.strip()[:60],
            expected=f"one JSON object ({error.msg} at column {error.colno})",
            fix="fix or remove this line (the last one may have been cut off)",
        ) from error
    if not isinstance(record, dict):
        raise ConfigError(where, given=_short(record), expected=f"one JSON object: {_FORMAT}", fix="fix this line")
    return record


def _read_group(
    record: Mapping[str, Any], *, number: int, path: Path, task_name: str, tokenise: Callable[[str], Sequence[int]]
) -> ScoredGroup:
    where = f"{path}:{number}"
    fields = _Fields(record, where=where)
    items = fields.items("completions")
    text, reference_answer = fields.text("prompt"), fields.text("reference_answer")
    is_plain = all(isinstance(item, str) for item in items)
    token_ids = np.array(tokenise(text), dtype=np.int32) if is_plain else fields.integers("prompt_token_ids")
    if not len(token_ids):
        raise fields.error("prompt" if is_plain else "prompt_token_ids", expected="at least one token")
    if not is_plain and not all(isinstance(item, dict) for item in items):
        raise fields.error("completions", expected="texts throughout, or objects throughout")
    trajectories = [
        (_plain_trajectory(item, index=index, prompt=token_ids, token_ids=tokenise(item)), ())
        if is_plain
        else _read_trajectory(_Fields(item, where=where, inside=f"completions[{index}]."), index=index)
        for index, item in enumerate(items)
    ]
    prompt = Prompt(
        prompt_id=fields.text("prompt_id") if "prompt_id" in fields else f"{path.name}:{number}",
        token_ids=token_ids,
        text=text,
        reference_answer=reference_answer,
        task=task_name,
    )
    group = TrajectoryGroup(
        group_id=fields.integer("group_id") if "group_id" in fields else number - 1,
        prompt=prompt,
        trajectories=tuple(trajectory for trajectory, _ in trajectories),
    )
    return ScoredGroup(group=group, terms=tuple(terms for _, terms in trajectories))


def _plain_trajectory(text: str, *, index: int, prompt: IntArray, token_ids: Sequence[int]) -> Trajectory:
    num_tokens = len(prompt) + len(token_ids)
    is_sampled = np.arange(num_tokens) >= len(prompt)
    return Trajectory(
        index=index,
        token_ids=np.concatenate((prompt, np.asarray(token_ids, np.int32))),
        is_sampled=is_sampled,
        logprobs=np.where(is_sampled, np.float32(np.nan), np.float32(0.0)),
        policy_versions=_unknown_version(),
        text=text,
        finish_reason="stop",
    )


def _read_trajectory(fields: _Fields, *, index: int) -> tuple[Trajectory, tuple[RewardTerm, ...]]:
    token_ids = fields.integers("token_ids")
    spans = fields.spans("sampled_spans", end=len(token_ids))
    is_sampled = np.zeros(len(token_ids), np.bool_)
    for start, end in spans:
        is_sampled[start:end] = True
    num_sampled = int(is_sampled.sum())
    logprobs = np.zeros(len(token_ids), np.float32)
    logprobs[is_sampled] = fields.numbers("logprobs", count=num_sampled) if "logprobs" in fields else math.nan
    versions = _unknown_version()
    if "policy_versions" in fields:
        starts = fields.integers("policy_version_starts")
        versions = PolicyVersions(
            starts=starts, versions=fields.integers("policy_versions", at_least=UNKNOWN_POLICY_VERSION)
        )
        if len(starts) != len(versions.versions) or starts[:1].tolist() != [0]:
            raise fields.error("policy_version_starts", expected="a start for each of policy_versions, the first 0")
    trajectory = Trajectory(
        index=index,
        token_ids=token_ids,
        is_sampled=is_sampled,
        logprobs=logprobs,
        policy_versions=versions,
        text=fields.text("text"),
        finish_reason=_finish_reason(fields),
    )
    return trajectory, _reward_terms(fields)


def _finish_reason(fields: _Fields) -> FinishReason:
    reason = fields.text("finish_reason")
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise fields.error("finish_reason", expected='"stop" or "length"')


def _reward_terms(fields: _Fields) -> tuple[RewardTerm, ...]:
    """The recorded terms; null is an invalid one. Neither time nor weights of the scorers are recorded."""
    reasons = fields.mapping("reasons")
    terms = []
    for scorer, value in fields.mapping("rewards").items():
        if value is not None and not _is_number(value):
            raise fields.error("rewards", expected="a number, or null where it is invalid, for each scorer")
        terms.append(
            RewardTerm(
                scorer=scorer,
                value=0.0 if value is None else float(value),
                status="invalid" if value is None else "ok",
                reason=str(reasons.get(scorer, "recorded")),
                policy_version=UNKNOWN_POLICY_VERSION,
                seconds=0.0,
            )
        )
    return tuple(terms)


def _trajectory_as_json(trajectory: Trajectory, *, terms: Sequence[RewardTerm]) -> dict[str, JsonValue]:
    return {
        "index": trajectory.index,
        "text": trajectory.text,
        "rewards": rewards_as_json(terms),
        "reasons": {term.scorer: term.reason for term in terms},
        "finish_reason": trajectory.finish_reason,
        "policy_version_starts": trajectory.policy_versions.starts.tolist(),
        "policy_versions": trajectory.policy_versions.versions.tolist(),
        "token_ids": trajectory.token_ids.tolist(),
        "sampled_spans": [list(turn) for turn in trajectory.turns],
        "logprobs": [round(float(logprob), 6) for logprob in trajectory.logprobs[trajectory.is_sampled]],
    }


def _unknown_version() -> PolicyVersions:
    return PolicyVersions(starts=np.zeros(1, dtype=np.int32), versions=np.array([UNKNOWN_POLICY_VERSION], np.int32))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
