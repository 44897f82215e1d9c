"""GRPO-PV: does a completion give the answer that most of its group give? No label is read.

The label-free control of Zhao et al., "Learning to Reason without External Rewards", arXiv 2505.19590.

| the response | status | value | reason |
|---|---|---|---|
| its answer is in the largest class of equal answers of its group | ok | 1 | plurality |
| its answer is in a smaller class | ok | 0 | minority |
| states no answer, also because it was cut at the length limit | ok | 0 | no_answer |
| was cut at the length limit, where a cut number would read as another one (rational) | ok | 0 | truncated |
| answer cannot be read as a number or as mathematics | ok | 0 | unparseable |
| answer has more than `MAX_ANSWER_CHARACTERS` characters (not even tried) | ok | 0 | answer_too_long |
| a comparison exceeded its time or memory | invalid, or ok and 0: `reward.timeout_is` | | timeout, memory |
| a comparison of the answer killed its process | invalid | - | crash |

Only what stands in a class votes, each completion once. Classes of equal size share the plurality: all of them get
1. Picking the first of them, as majority labels made by counting do, would reward the luck of the order; this way a
group whose members all disagree has no spread, and so no advantage. A group where nobody has an answer gets 0
throughout. How classes are made is said in `answers.answer_classes`.
"""

from collections import Counter

from actors.rewards.answers import AnswerScorer, ClassifiedAnswer
from system.records import RewardTerm, TrajectoryGroup


class PluralityScorer(AnswerScorer):
    """Scorer that rewards agreement with the group's plurality answer."""

    name = "plurality"

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        """One term for each completion, as in the table above; `seconds` is the time of its answer's comparisons."""
        classified = self.classify(self.read_answers(group))
        votes = Counter(answer.class_index for answer in classified if answer.class_index >= 0)
        most_votes = max(votes.values(), default=0)
        return tuple(
            self._term(answer, is_plurality=votes[answer.class_index] == most_votes > 0) for answer in classified
        )

    def _term(self, answer: ClassifiedAnswer, *, is_plurality: bool) -> RewardTerm:
        return RewardTerm(
            scorer=self.name,
            value=float(is_plurality),
            status=self.status_of(answer.status, reason=answer.reason),
            reason=answer.reason or ("plurality" if is_plurality else "minority"),
            policy_version=-1,
            seconds=answer.seconds,
        )
