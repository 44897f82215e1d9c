"""The scorers that a reward term may name: where each runs. Adding one: its file, and a line here.

| runs on | made of | gives |
|---|---|---|
| answers | a task, and child processes that compare answers | a term for each completion of a group |
| values | its options; a user's own scorer (`package.module:Name`) as well | a number for each completion of a group |
| policy | a scoring replica of the policy | a term for each completion of a group |

Free of torch: the classes are imported where they run.
"""

from dataclasses import dataclass
from typing import Any, Literal

from system.config.imports import import_class, is_import_path, label_of
from system.config.options import make_options
from system.config.schema import RewardConfig, RewardTermConfig
from system.errors import ConfigError
from system.fields import NoOptions

Runs = Literal["answers", "values", "policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerPlace:
    """`path` is the import path of its class."""

    path: str
    runs: Runs


SCORERS = {
    "verifier": ScorerPlace(path="actors.rewards.answer_verifier:AnswerVerifier", runs="answers"),
    "plurality": ScorerPlace(path="actors.rewards.plurality:PluralityScorer", runs="answers"),
    "length": ScorerPlace(path="actors.rewards.length:Length", runs="values"),
    "overlong": ScorerPlace(path="actors.rewards.overlong:Overlong", runs="values"),
    "self_certainty": ScorerPlace(path="actors.scoring.self_certainty:SelfCertaintyScorer", runs="policy"),
}


def scorer_place(name: str, *, key: str) -> ScorerPlace:
    """Where a scorer runs. Raises ConfigError for an unknown name."""
    if is_import_path(name):
        return ScorerPlace(path=name, runs="values")
    if name not in SCORERS:
        raise ConfigError.unknown(key, given=name, known=SCORERS, others="an import path package.module:Name")
    return SCORERS[name]


def value_scorer_class(name: str, *, key: str) -> Any:
    """The class of a scorer that runs on "values". Raises ConfigError in one line."""
    return import_class(scorer_place(name, key=key).path, key=key, methods=("score",))


def check_terms(reward: RewardConfig) -> None:
    """Every term names a scorer that exists, once, with options that it has. Raises ConfigError."""
    labels: set[str] = set()
    for number, term in enumerate(reward.terms):
        prefix = f"reward.terms[{number}]"
        place = scorer_place(term.scorer, key=f"{prefix}.scorer")
        options = NoOptions
        if place.runs == "values":
            options = getattr(value_scorer_class(term.scorer, key=f"{prefix}.scorer"), "Options", NoOptions)
        make_options(options, term.options, prefix=f"{prefix}.options")
        if label_of(term.scorer) in labels:
            raise ConfigError(
                f"{prefix}.scorer", given=term.scorer, expected="a scorer that no other term names", fix="remove one"
            )
        labels.add(label_of(term.scorer))


def reward_weights(reward: RewardConfig) -> dict[str, float]:
    """Weight of each term by the label of its scorer, in their order; 0 only monitors."""
    return {label_of(term.scorer): term.weight for term in reward.terms}


def find_term(reward: RewardConfig, scorer: str) -> RewardTermConfig | None:
    """The term of a scorer, None where it has none."""
    return next((term for term in reward.terms if term.scorer == scorer), None)


def terms_on(reward: RewardConfig, *runs: Runs) -> list[RewardTermConfig]:
    """The terms whose scorers run there, in their order."""
    return [term for term in reward.terms if scorer_place(term.scorer, key="reward.terms").runs in runs]
