"""Ends a run whose groups all end without a reward to train on, and says why they do. Used by the controller."""

from __future__ import annotations

from collections import Counter

from system.errors import CredenceError
from system.records import Prompt, ScoredGroup

_MAX_EXAMPLE_CHARACTERS = 200


class NothingToTrainError(CredenceError):
    """Too many groups in a row were dropped."""


class DropWatch:
    """Counts groups that were dropped since the last one that could be trained on."""

    def __init__(self, *, max_in_a_row: int) -> None:
        self._max_in_a_row = max_in_a_row
        self.note_trainable()

    def note_trainable(self) -> None:
        """A group came through."""
        self._num_in_a_row = 0
        self._reasons: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()

    def note_dropped(self, prompt: Prompt, *, reason: str, scored: ScoredGroup | None = None) -> None:
        """Raises NothingToTrainError when it is one too many, with the reason that prevails and an example."""
        self._num_in_a_row += 1
        self._reasons[reason] += 1
        rows = scored.terms if scored is not None else ()
        self._verdicts.update(
            f"{term.scorer}: {term.reason}" for row in rows for term in row if term.status == "invalid"
        )
        if self._num_in_a_row < self._max_in_a_row:
            return
        prevailing, count = self._reasons.most_common(1)[0]
        verdicts = ", ".join(f"{verdict} ({number} times)" for verdict, number in self._verdicts.most_common(3))
        raise NothingToTrainError(
            f"{self._num_in_a_row} groups in a row gave nothing to train on (controller.max_dropped_in_a_row="
            f"{self._max_in_a_row}); {count} of them: {prevailing}"
            + (f"; invalid verdicts: {verdicts}" if verdicts else "")
            + f". An example: prompt {prompt.prompt_id} {_shortened(prompt.text)}"
            + (f" answered by {_shortened(_first_text(scored))}" if scored is not None else "")
        )


def _first_text(scored: ScoredGroup) -> str:
    return scored.group.trajectories[0].text if scored.group.trajectories else ""


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _MAX_EXAMPLE_CHARACTERS else text[:_MAX_EXAMPLE_CHARACTERS] + "...")
