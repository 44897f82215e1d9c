"""The verifier: is a completion's final answer the reference answer? Decided in a sandbox of child processes.

| the response | status | value | reason |
|---|---|---|---|
| answer equals the reference | ok | 1 | right |
| answer differs | ok | 0 | wrong |
| states no answer, also because it was cut at the length limit | ok | 0 | no_answer |
| was cut at the length limit, where a cut number would read as another one (rational) | ok | 0 | truncated |
| answer cannot be read as a number or as mathematics | ok | 0 | unparseable |
| answer has more than `MAX_ANSWER_CHARACTERS` characters (not even tried) | ok | 0 | answer_too_long |
| the check exceeded its time or memory, or killed its process | invalid | - | timeout, memory, crash |
| the comparison raised | invalid | - | verifier_error |
| the reference cannot be read, or is too long | invalid | - | unparseable_reference, too_long |

The line between 0 and invalid: zero where the fault is the model's, since being asked for an answer that
can be read is part of the problem and a policy must not gain by garbling what it does not know. Invalid
where the verifier did not get to know: a formula that takes too long to compare may be right. Such
completions are left out of the group's statistics and are counted by reason.
"""

from actors.scorers.sandbox import Sandbox, Verdict
from system.interfaces import AnswerKind, Task
from system.records import CompletionGroup, RewardTerm

MAX_ANSWER_CHARACTERS = 2_000

# By name: only the children import these, so that sympy is not loaded in a reward worker.
_CHECKS: dict[AnswerKind, str] = {
    "math": "actors.scorers.math_check:check_math",
    "rational": "actors.scorers.rational_check:check_rational",
}


class MathVerifier:
    """Scorer that compares extracted answers with the reference by math-verify or as exact rationals.

    `task.answer_kind` chooses which. Each distinct answer of a group is checked once, all of them in one
    round trip to the children.

    Args:
        num_processes: children of this verifier.
        timeout_seconds: wall clock for one answer.
        memory_limit_mib: address space of one child.

    Raises:
        ValueError, SandboxStartError: as in `Sandbox`.
    """

    name = "verifier"

    def __init__(self, task: Task, *, num_processes: int, timeout_seconds: float, memory_limit_mib: int) -> None:
        self._task = task
        self._sandbox = Sandbox(
            _CHECKS[task.answer_kind],
            num_processes=num_processes,
            timeout_seconds=timeout_seconds,
            memory_limit_mib=memory_limit_mib,
        )

    def score(self, group: CompletionGroup) -> tuple[RewardTerm, ...]:
        """One term for each completion, as in the table above; `seconds` is the time of its answer's check."""
        # `#7` may be the beginning of `#72`; a \\boxed{...} that was closed is whole wherever the text ends
        is_cut = [
            self._task.answer_kind == "rational" and completion.finish_reason == "length"
            for completion in group.completions
        ]
        answers = [
            None if cut else self._task.extract_answer(completion.text)
            for completion, cut in zip(group.completions, is_cut, strict=True)
        ]
        # dict, not set: the order of the checks, and with it who is blamed for a crash, must be reproducible.
        distinct = list(dict.fromkeys(answer for answer in answers if answer and len(answer) <= MAX_ANSWER_CHARACTERS))
        verdicts = self._sandbox.run([(answer, group.prompt.reference_answer) for answer in distinct])
        verdict_of = dict(zip(distinct, verdicts, strict=True))
        return tuple(
            self._term(answer, missing="truncated" if cut else "no_answer", verdict_of=verdict_of)
            for answer, cut in zip(answers, is_cut, strict=True)
        )

    def close(self) -> None:
        """End the child processes. Safe to call again."""
        self._sandbox.close()

    def _term(self, answer: str | None, *, missing: str, verdict_of: dict[str, Verdict]) -> RewardTerm:
        if not answer:
            verdict = Verdict(status="ok", value=0.0, reason=missing, seconds=0.0)
        elif len(answer) > MAX_ANSWER_CHARACTERS:
            verdict = Verdict(status="ok", value=0.0, reason="answer_too_long", seconds=0.0)
        else:
            verdict = verdict_of[answer]
        return RewardTerm(
            scorer=self.name,
            value=verdict.value,
            status=verdict.status,
            reason=verdict.reason,
            policy_version=-1,
            seconds=verdict.seconds,
        )
