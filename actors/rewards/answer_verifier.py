"""The verifier: is a completion's final answer right? Decided in a sandbox of child processes.

An answer is compared with the reference answer, a program is run on the tests that stand in its place.

| the response | status | value | reason |
|---|---|---|---|
| answer equals the reference; program passes all tests | ok | 1 | right |
| answer differs; program fails a test | ok | 0 | wrong |
| program raises or kills itself | ok | 0 | runtime_error |
| program exceeds the time for all its tests, its memory, or 1 MiB of output | ok | 0 | time_limit, memory_limit, |
| | | | output_limit |
| states no answer, also because it was cut at the length limit | ok | 0 | no_answer |
| was cut at the length limit, where a cut number would read as another one (rational) | ok | 0 | truncated |
| answer cannot be read as a number, as mathematics or words, or as Python | ok | 0 | unparseable |
| answer has more characters than `ANSWER_CHECKS` allows (not even tried) | ok | 0 | answer_too_long |
| the check exceeded its time or memory | invalid, or ok and 0: `reward.timeout_is` | | timeout, memory |
| the check killed its process | invalid; for a program ok and 0 | | crash |
| the reference cannot be read, or is too long | invalid | - | unparseable_reference, too_long |

The line between 0 and invalid: zero where the fault is the model's, since being asked for an answer that
can be read is part of the problem and a policy must not gain by garbling what it does not know. Invalid
where the verifier did not get to know: a formula that takes too long to compare may be right. Such
completions are left out of the group's statistics and are counted by reason.
"""

from actors.rewards.answers import Answer, AnswerScorer
from actors.sandbox.sandbox import Verdict
from system.records import RewardTerm, TrajectoryGroup


class AnswerVerifier(AnswerScorer):
    """Scorer that checks extracted answers as mathematics, as exact rationals, or as programs that pass tests.

    `task.answer_kind` chooses which. Each distinct answer of a group is checked once, all of them in one
    round trip to the children.
    """

    name = "verifier"

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        """One term for each completion, as in the table above; `seconds` is the time of its answer's check."""
        answers = self.read_answers(group)
        # dict, not set: the order of the checks, and with it who is blamed for a crash, must be reproducible.
        distinct = list(dict.fromkeys(answer.text for answer in answers if answer.text is not None))
        verdicts = self._check(distinct, reference=group.prompt.reference_answer)
        verdict_of = dict(zip(distinct, verdicts, strict=True))
        return tuple(self._term(answer, verdict_of=verdict_of) for answer in answers)

    def _term(self, answer: Answer, *, verdict_of: dict[str, Verdict]) -> RewardTerm:
        if answer.text is None:
            verdict = Verdict(status="ok", value=0.0, reason=answer.reason, seconds=0.0)
        else:
            verdict = verdict_of[answer.text]
        return RewardTerm(
            scorer=self.name,
            value=verdict.value,
            status=self.status_of(verdict.status, reason=verdict.reason),
            reason=verdict.reason,
            policy_version=-1,
            seconds=verdict.seconds,
        )
