"""The reward worker: runs its scorers over groups of trajectories. Wrapped as a Ray actor in `ray_actors.py`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from actors.rewards.hypotheses import HypothesisFinder
from system.algorithms.rewards import is_right
from system.interfaces import Scorer
from system.records import AnswerHypotheses, RewardTerm, ScoredGroup, TrajectoryGroup


class RewardWorker:
    """Hosts scorers and owns them: `close` closes them. Not thread-safe; one call at a time.

    With a `hypothesis_finder`, and the verifier among the scorers, groups may get the hypotheses for their beliefs.

    Raises:
        ValueError: no scorer, or two of the same name (rewards are weighted by name).
    """

    def __init__(self, scorers: Sequence[Scorer], *, hypothesis_finder: HypothesisFinder | None = None) -> None:
        names = [scorer.name for scorer in scorers]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a reward worker needs scorers with distinct names, got {names}")
        self._scorers = tuple(scorers)
        self._hypothesis_finder = hypothesis_finder

    def score(self, group: TrajectoryGroup, *, with_hypotheses: bool = False) -> ScoredGroup:
        """Every scorer's term for every trajectory: `terms[g][k]` is scorer k's on trajectory g.

        A scorer reports trouble with a model's text as an invalid term. An exception is a fault of ours
        and passes through.

        Raises:
            ValueError: a scorer returned another number of terms than the group has trajectories, or nobody here
                finds hypotheses.
        """
        columns: list[tuple[RewardTerm, ...]] = []
        for scorer in self._scorers:
            terms = scorer.score(group)
            if len(terms) != len(group.trajectories):
                raise ValueError(
                    f"scorer {scorer.name!r} gave {len(terms)} terms for {len(group.trajectories)} trajectories "
                    f"of group {group.group_id}"
                )
            columns.append(terms)
        scored = ScoredGroup(group=group, terms=tuple(zip(*columns, strict=True)))
        return replace(scored, hypotheses=self._hypotheses(scored)) if with_hypotheses else scored

    def _hypotheses(self, scored: ScoredGroup) -> AnswerHypotheses:
        if self._hypothesis_finder is None:
            raise ValueError("this reward worker finds no hypotheses")
        right = [is_right(scored, index) for index in range(len(scored.terms))]
        return self._hypothesis_finder.find(scored.group, is_right=right)

    def close(self) -> None:
        """Close every scorer, also when one of them raises. Safe to call again."""
        with ExitStack() as stack:
            for scorer in self._scorers:
                stack.callback(scorer.close)
