"""The length of a completion in tokens, as a reward term: `correct - 0.001 * length` is a weight of -0.001."""

from system.records import CompletionGroup


class Length:
    """Value: the number of tokens that the policy wrote."""

    def score(self, group: CompletionGroup) -> list[float]:
        return [float(len(completion.token_ids)) for completion in group.completions]
