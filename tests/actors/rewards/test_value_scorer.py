"""Scorers that give numbers: length, the overlong punishment, and a user's own class, also one that raises."""

import logging
import math
from dataclasses import dataclass, replace

import pytest

from actors.rewards.value_scorer import ValueScorer
from system.config.schema import RewardTermConfig
from system.errors import ConfigError
from system.fields import key
from system.records import TrajectoryGroup
from tests.actors.rewards.answer_tasks import group_of
from tests.trajectories import single_turn

ANSWERS = ["ab", "abcd", "abcdefgh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnOptions:
    factor: float = key("Multiplies.", 1.0, minimum=0)


class Own:
    Options = OwnOptions

    def __init__(self, options: OwnOptions) -> None:
        self._factor = options.factor

    def score(self, group: TrajectoryGroup) -> list[float | None]:
        return [self._factor * len(trajectory.text) for trajectory in group.trajectories]


class Raises:
    def score(self, group: TrajectoryGroup) -> list[float]:
        raise RuntimeError("no such luck")


class SaysTooLittle:
    def score(self, group: TrajectoryGroup) -> list[float]:
        return [1.0]


class HasHoles:
    def score(self, group: TrajectoryGroup) -> list[float | None]:
        return [1.0, None, math.nan]


def text_group(texts: list[str]) -> TrajectoryGroup:
    """One token a character."""
    group = group_of(texts, reference="1")
    trajectories = (single_turn([0] * len(text), text=text, index=index) for index, text in enumerate(texts))
    return replace(group, trajectories=tuple(trajectories))


def scored(term: RewardTermConfig, group: TrajectoryGroup) -> list[tuple[float, str, str]]:
    terms = ValueScorer(term).score(group)
    return [(each.value, each.status, each.reason) for each in terms]


def own(name: str, **options: object) -> RewardTermConfig:
    return RewardTermConfig(scorer=f"{__name__}:{name}", options=options)


def test_length_counts_the_tokens() -> None:
    group = text_group(ANSWERS)
    values = [value for value, _, _ in scored(RewardTermConfig(scorer="length"), group)]
    assert values == [2.0, 4.0, 8.0]


def test_the_overlong_punishment_falls_over_the_buffer() -> None:
    # L_max 6, L_cache 4: 0 up to 2 tokens, (2 - 4) / 4 at 4, -1 from 6 on (arXiv 2503.14476, equation 13)
    term = RewardTermConfig(scorer="overlong", options={"max_tokens": 6, "buffer_tokens": 4})
    assert [value for value, _, _ in scored(term, text_group(ANSWERS))] == [0.0, -0.5, -1.0]


def test_an_own_class_gets_its_options_and_its_name() -> None:
    scorer = ValueScorer(own("Own", factor=2))
    assert scorer.name == "own"
    assert [term.value for term in scorer.score(text_group(ANSWERS))] == [4.0, 8.0, 16.0]
    assert ValueScorer(own("SaysTooLittle")).name == "says_too_little"


def test_what_an_own_class_raises_is_an_invalid_term_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    scorer = ValueScorer(own("Raises"))
    with caplog.at_level(logging.WARNING):
        terms = [scorer.score(text_group(ANSWERS)) for _ in range(2)]
    assert {(term.status, term.reason) for row in terms for term in row} == {("invalid", "raised")}
    assert len(caplog.records) == 1
    assert "no such luck" in caplog.text
    assert "Traceback" in caplog.text


def test_values_that_are_missing_are_invalid() -> None:
    group = text_group(ANSWERS)
    assert [status for _, status, _ in scored(own("HasHoles"), group)] == ["ok", "invalid", "invalid"]
    assert {reason for _, _, reason in scored(own("SaysTooLittle"), group)} == {"wrong_number"}


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"options of .*:Own.factr: given 1, expected one of factor.*mean .*factor\?"):
        ValueScorer(own("Own", factr=1))
    with pytest.raises(ConfigError, match="factor: given -1.0, expected at least 0"):
        ValueScorer(own("Own", factor=-1))
    with pytest.raises(ConfigError, match="buffer_tokens .* expected at most max_tokens=6"):
        ValueScorer(RewardTermConfig(scorer="overlong", options={"max_tokens": 6, "buffer_tokens": 7}))
