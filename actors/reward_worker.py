"""The reward worker: runs its scorers over groups of completions. Wrapped as a Ray actor in `ray_actors.py`."""

from collections.abc import Sequence
from contextlib import ExitStack

from system.interfaces import Scorer
from system.records import CompletionGroup, RewardTerm, ScoredGroup


class RewardWorker:
    """Hosts scorers and owns them: `close` closes them. Not thread-safe; one call at a time.

    Raises:
        ValueError: no scorer, or two of the same name (rewards are weighted by name).
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        names = [scorer.name for scorer in scorers]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a reward worker needs scorers with distinct names, got {names}")
        self._scorers = tuple(scorers)

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
        return ScoredGroup(
            group_id=group.group_id,
            prompt=group.prompt,
            completions=group.completions,
            rewards=tuple(zip(*columns, strict=True)),
        )

    def close(self) -> None:
        """Close every scorer, also when one of them raises. Safe to call again."""
        with ExitStack() as stack:
            for scorer in self._scorers:
                stack.callback(scorer.close)
