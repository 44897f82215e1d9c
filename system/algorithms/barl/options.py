"""The options of BARL and Progress: what is asked of the policy, and what its answers are made into."""

from dataclasses import dataclass
from typing import Literal

from system.algorithms.barl.belief import AnswerReduction
from system.errors import ConfigError
from system.fields import key

Steps = Literal["task", "tokens", "paragraph", "line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressOptions:
    baseline: Literal["group_step", "batch", "none"] = key(
        "What a step's value is compared with: group_step subtracts the group's mean at the same relative step, batch "
        "whitens over all sampled tokens of the batch (the BARL authors), none leaves it.",
        "group_step",
    )
    reduction: AnswerReduction = key(
        "Log-probability of an answer: sum over its tokens, or mean, which takes out its length.", "sum"
    )
    probe: str | None = key(
        "Text that asks for an answer, behind which `{answer}.` is scored; null: as the task asks, its end included.",
        None,
    )
    steps: Steps = key(
        "Steps of a response: those of its task, chunks of step_tokens tokens, paragraphs, or lines.", "task"
    )
    step_tokens: int = key("Tokens of a step (steps=tokens).", 128, minimum=1)

    @property
    def max_candidates(self) -> int:
        """Hypotheses beside the reference answer."""
        return 0

    @property
    def is_exact(self) -> bool:
        return False

    def check(self) -> None:
        """Raises ConfigError for an option that nothing reads."""
        if self.steps != "tokens" and self.step_tokens != 128:
            raise ConfigError(
                "algorithm.options.step_tokens",
                given=self.step_tokens,
                expected=f"128, as algorithm.options.steps={self.steps} does not read it",
                fix="remove it, or algorithm.options.steps=tokens",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BarlOptions(ProgressOptions):
    hypotheses: Literal["merged", "exact"] = key(
        "Answers of a group that are hypotheses: merged makes one of those that the verifier finds equal, exact takes "
        "distinct texts of at most 20 characters (the BARL authors).",
        "merged",
    )
    candidates: int = key("Hypotheses beside the reference answer, at most.", 5, minimum=1)
    beta: float = key(
        "How fast a hypothesis that mispredicts progress loses its weight; 0: not at all.", 1.0, minimum=0
    )

    @property
    def max_candidates(self) -> int:
        return self.candidates

    @property
    def is_exact(self) -> bool:
        return self.hypotheses == "exact"
