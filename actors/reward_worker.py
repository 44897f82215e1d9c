"""The reward worker: runs its scorers over groups of completions. Wrapped as a Ray actor in `ray_actors.py`."""

from collections.abc import Sequence
from contextlib import ExitStack

from actors.scorers.hypotheses import HypothesisFinder
from system.algorithms.rewards import VERIFIER
from system.interfaces import Scorer
from system.records import CompletionGroup, RewardTerm, ScoredGroup


class RewardWorker:
    """Hosts scorers and owns them: `close` closes them. Not thread-safe; one call at a time.

    With a `hypothesis_finder` (and the verifier among the scorers) the groups get the hypotheses for their beliefs.

    Raises:
        ValueError: no scorer, or two of the same name (rewards are weighted by name).
    """

    def __init__(self, scorers: Sequence[Scorer], *, hypothesis_finder: HypothesisFinder | None = None) -> None:
        names = [scorer.name for scorer in scorers]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a reward worker needs scorers with distinct names, got {names}")
        self._scorers = tuple(scorers)
        self._hypothesis_finder = hypothesis_finder

    def score(self, group: CompletionGroup) -> ScoredGroup:
        """Every scorer's term for every completion: `rewards[g][k]` is scorer k's on completion g.

        A scorer reports trouble with a model's text as an invalid term. An exception is a fault of ours
        and passes through.

        Raises:
            ValueError: a scorer returned another number of terms than the group has completions.
        """
        columns: list[tuple[RewardTerm, ...]] = []
        for scorer in self._scorers:
            terms = scorer.score(group)
            if len(terms) != len(group.completions):
                raise ValueError(
                    f"scorer {scorer.name!r} gave {len(terms)} terms for {len(group.completions)} completions "
                    f"of group {group.group_id}"
                )
            columns.append(terms)
        hypotheses = None
        if self._hypothesis_finder is not None:
            verdicts = next(terms for terms in columns if terms[0].scorer == VERIFIER)
            is_right = [term.status == "ok" and term.value == 1.0 for term in verdicts]
            hypotheses = self._hypothesis_finder.find(group, is_right=is_right)
        return ScoredGroup(
            group_id=group.group_id,
            prompt=group.prompt,
            completions=group.completions,
            rewards=tuple(zip(*columns, strict=True)),
            hypotheses=hypotheses,
        )

    def close(self) -> None:
        """Close every scorer, also when one of them raises. Safe to call again."""
        with ExitStack() as stack:
            if self._hypothesis_finder is not None:
                stack.callback(self._hypothesis_finder.close)
            for scorer in self._scorers:
                stack.callback(scorer.close)
