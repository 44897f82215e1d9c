"""What completions answer: read from their text, and put into classes of equal answers.

Used by the scorers that look at answers, and by best-of-N selection. Answers are untrusted: they are compared in the
children of a sandbox only.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from actors.sandbox.sandbox import Sandbox, Verdict
from system.config.schema import TimeoutIs
from system.interfaces import AnswerKind, Task
from system.records import FinishReason, RewardStatus, TrajectoryGroup

MAX_ANSWER_CHARACTERS = 2_000
MAX_PROGRAM_CHARACTERS = 16_000
# A program's own limit ends long before the sandbox's, which only ends a check that hangs: while the judge waits for a
# program that waits for a processor, it must not be taken to hang itself.
_CHECK_OVER_PROGRAM_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCheck:
    """How answers of one kind are checked against a reference."""

    function: str  # by name: only the children import it, so that sympy is not loaded in a reward worker
    max_characters: int
    has_time_limit: bool  # it takes its limit as third argument and keeps it itself


ANSWER_CHECKS: dict[AnswerKind, AnswerCheck] = {
    "math": AnswerCheck(
        function="actors.rewards.math_check:check_math", max_characters=MAX_ANSWER_CHARACTERS, has_time_limit=False
    ),
    "rational": AnswerCheck(
        function="actors.rewards.rational_check:check_rational",
        max_characters=MAX_ANSWER_CHARACTERS,
        has_time_limit=False,
    ),
    "contains": AnswerCheck(
        function="actors.rewards.contains_check:check_contains",
        max_characters=MAX_ANSWER_CHARACTERS,
        has_time_limit=False,
    ),
    "code": AnswerCheck(
        function="actors.rewards.code_check:check_code", max_characters=MAX_PROGRAM_CHARACTERS, has_time_limit=True
    ),
}
# A harmless number that every answer is compared with before answers meet each other: one that hangs, eats memory
# or crashes the comparison does so here, where nobody else can be blamed for it.
_PROBE = "0"
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"
_OUT_OF_LIMITS = ("timeout", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The final answer of a completion. Without `text` there is nothing to compare and `reason` says why."""

    text: str | None
    reason: str  # "" with a text, else "no_answer", "truncated" or "answer_too_long"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedAnswer:
    """The class of one answer. "invalid": its comparisons did not end, so its class is not known."""

    class_index: int  # from 0, in the order in which the classes were opened; -1: in no class
    status: RewardStatus
    reason: str  # "" in a class, else why in none
    seconds: float  # spent on the comparisons of this answer


def read_answer(
    response: str, *, finish_reason: FinishReason, task: Task, prompt: str = "", after_thinking: bool = False
) -> Answer:
    """The answer that a response states.

    A number at the end of a response that was cut at the length limit is none: `#7` may be the beginning of `#72`. A
    \\boxed{...} that was closed is whole wherever the text ends. `after_thinking` reads only what follows the last
    `</think>`; thinking that the response, or the end of the `prompt`, opens and nothing closes states no answer.
    """
    if after_thinking:
        _, end, rest = response.rpartition(_END_OF_THOUGHT)
        is_open = _THOUGHT in rest or (not end and prompt.rstrip().endswith(_THOUGHT))
        response = "" if is_open else rest
    if task.answer_kind == "rational" and finish_reason == "length":
        return Answer(text=None, reason="truncated")
    text = task.extract_answer(response)
    if not text:
        return Answer(text=None, reason="no_answer")
    if len(text) > ANSWER_CHECKS[task.answer_kind].max_characters:
        return Answer(text=None, reason="answer_too_long")
    return Answer(text=text, reason="")


class AnswerScorer:
    """What scorers that compare answers share: the task, a sandbox of their own, and how answers are read.

    Args:
        num_processes: children of this scorer.
        timeout_seconds: computing time of one comparison.
        memory_limit_mib: address space of one child.
        timeout_is: what an answer is whose comparison exceeds its time or memory. Invalid ones are left out of the
            group, so a policy that learns to write them escapes the reward of a wrong answer; wrong ones are 0.
        answer_after_thinking: see `read_answer`.

    Raises:
        ValueError, SandboxStartError: as in `Sandbox`.
    """

    def __init__(
        self,
        task: Task,
        *,
        num_processes: int,
        timeout_seconds: float,
        memory_limit_mib: int,
        timeout_is: TimeoutIs = "invalid",
        answer_after_thinking: bool = False,
    ) -> None:
        self._task = task
        self._timeout_is = timeout_is
        self._answer_after_thinking = answer_after_thinking
        self._limit_argument = (repr(timeout_seconds),) if ANSWER_CHECKS[task.answer_kind].has_time_limit else ()
        self._sandbox = start_answer_sandbox(
            task.answer_kind,
            num_processes=num_processes,
            timeout_seconds=timeout_seconds,
            memory_limit_mib=memory_limit_mib,
        )

    def close(self) -> None:
        """End the child processes. Safe to call again."""
        self._sandbox.close()

    def read_answers(self, group: TrajectoryGroup) -> list[Answer]:
        """The answer of each trajectory."""
        return [
            read_answer(
                trajectory.text,
                finish_reason=trajectory.finish_reason,
                task=self._task,
                prompt=group.prompt.text,
                after_thinking=self._answer_after_thinking,
            )
            for trajectory in group.trajectories
        ]

    def status_of(self, status: RewardStatus, *, reason: str) -> RewardStatus:
        """A check's status: "ok", with the value 0, where `timeout_is` says so, or where a program ended its judge."""
        is_wrong = reason in _OUT_OF_LIMITS and self._timeout_is == "wrong"
        return "ok" if is_wrong or (reason == "crash" and self._limit_argument) else status

    def classify(self, answers: Sequence[Answer]) -> list[ClassifiedAnswer]:
        """The class of equal answers that each is in; see `answer_classes`."""
        return answer_classes(answers, sandbox=self._sandbox)

    def _check(self, texts: Sequence[str], *, reference: str) -> list[Verdict]:
        """One verdict for each answer, in the same order."""
        return self._sandbox.run([(text, reference, *self._limit_argument) for text in texts])


def start_answer_sandbox(
    answer_kind: AnswerKind, *, num_processes: int, timeout_seconds: float, memory_limit_mib: int
) -> Sandbox:
    """Children whose check is `(answer, reference)`, or `(answer, reference, limit)`; errors as in `Sandbox`."""
    check = ANSWER_CHECKS[answer_kind]
    return Sandbox(
        check.function,
        num_processes=num_processes,
        timeout_seconds=timeout_seconds * (_CHECK_OVER_PROGRAM_SECONDS if check.has_time_limit else 1.0),
        memory_limit_mib=memory_limit_mib,
    )


def answer_classes(answers: Sequence[Answer], *, sandbox: Sandbox) -> list[ClassifiedAnswer]:
    """The class of each answer, in the same order; equal answers are in one class.

    Equality of mathematics is neither symmetric nor transitive, so a class is what equals its *representative*. The
    distinct texts are taken most frequent first (those equally frequent in order of appearance); the first one opens
    a class and represents it, the others are checked against it as against a reference; what equals it joins it, and
    the first of the rest opens the next class. So the most common way to write an answer decides who joins, and the
    result is the same in every run.

    | the answer | class | status | reason |
    |---|---|---|---|
    | none, or too long | -1 | ok | that of the `Answer` |
    | cannot be read as a number, as mathematics or as words | -1 | ok | unparseable |
    | its comparison with 0, or with a representative, did not end | -1 | invalid | timeout, memory, crash |

    An answer is dropped at its first comparison that fails, so a group costs at most one timeout for each distinct
    answer. `sandbox` is one of `start_answer_sandbox`; raises what `Sandbox.run` raises.
    """
    counts = Counter(answer.text for answer in answers if answer.text is not None)
    seconds: defaultdict[str, float] = defaultdict(float)
    decided: dict[str, ClassifiedAnswer] = {}

    def check(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        verdicts = sandbox.run(pairs)
        for (text, _), verdict in zip(pairs, verdicts, strict=True):
            seconds[text] += verdict.seconds
            if verdict.status == "invalid":
                decided[text] = _classified(-1, status="invalid", reason=verdict.reason, seconds=seconds[text])
        return verdicts

    texts = [text for text, _ in counts.most_common()]
    probes = check([(text, _PROBE) for text in texts])
    for text, verdict in zip(texts, probes, strict=True):
        if verdict.reason == "unparseable":
            decided[text] = _classified(-1, status="ok", reason="unparseable", seconds=seconds[text])
    waiting = [text for text in texts if text not in decided]
    class_index = 0
    while waiting:
        representative, *others = waiting
        verdicts = check([(text, representative) for text in others])
        equal = [text for text, verdict in zip(others, verdicts, strict=True) if verdict.reason == "right"]
        for text in (representative, *equal):
            decided[text] = _classified(class_index, status="ok", reason="", seconds=seconds[text])
        waiting = [text for text in others if text not in decided]
        class_index += 1
    return [
        decided[answer.text]
        if answer.text is not None
        else _classified(-1, status="ok", reason=answer.reason, seconds=0.0)
        for answer in answers
    ]


def _classified(class_index: int, *, status: RewardStatus, reason: str, seconds: float) -> ClassifiedAnswer:
    return ClassifiedAnswer(class_index=class_index, status=status, reason=reason, seconds=seconds)
