"""The tree of a small response written out by hand: tokens, positions, who sees whom, what is predicted from where."""

import numpy as np
import pytest
import torch

from system.numerics.answer_trees import AnswerTree, PackedTrees, split_answers

CPU = torch.device("cpu")


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def small_tree() -> AnswerTree:
    """Trunk 10 11 12 13 14 of which 13 14 is not looked at; two steps; prefix 20; answers `30 31 32` and `40`."""
    return AnswerTree(
        token_ids=ids(10, 11, 12, 13, 14),
        prefix_lengths=ids(1, 3),
        answer_prefix=ids(20),
        answers=(ids(30, 31, 32), ids(40)),
    )


def test_small_tree_by_hand() -> None:
    packed = PackedTrees.build([small_tree()], device=CPU)
    #                                      0   1   2 |  3   4   5 |  6   7   8
    assert packed.token_ids.tolist() == [10, 11, 12, 20, 30, 31, 20, 30, 31]
    assert packed.position_ids.tolist() == [0, 1, 2, 1, 2, 3, 3, 4, 5]
    assert packed.target_ids.tolist() == [30, 31, 32, 40, 30, 31, 32, 40]
    assert packed.predictor_index.tolist() == [3, 4, 5, 3, 6, 7, 8, 6]
    (block,) = packed.layout.blocks
    assert block.mask is not None
    seen = [row.nonzero()[:, 0].tolist() for row in block.mask[0, 0]]
    assert seen == [
        [0], [0, 1], [0, 1, 2],
        [0, 3], [0, 3, 4], [0, 3, 4, 5],
        [0, 1, 2, 6], [0, 1, 2, 6, 7], [0, 1, 2, 6, 7, 8],
    ]  # fmt: skip
    assert packed.layout.max_length == 6  # positions 0 .. 5
    assert small_tree().num_tokens == 9


def test_without_a_prefix_the_trunk_predicts_the_first_tokens() -> None:
    tree = AnswerTree(token_ids=ids(10, 11), prefix_lengths=ids(1, 2), answer_prefix=ids(), answers=(ids(30, 31),))
    packed = PackedTrees.build([tree], device=CPU)
    assert packed.token_ids.tolist() == [10, 11, 30, 30]
    assert packed.position_ids.tolist() == [0, 1, 1, 2]
    assert packed.predictor_index.tolist() == [0, 2, 1, 3]


def test_answers_of_one_branch_do_not_see_each_other() -> None:
    tree = AnswerTree(
        token_ids=ids(10), prefix_lengths=ids(1), answer_prefix=ids(20), answers=(ids(30, 31), ids(40, 41))
    )
    (block,) = PackedTrees.build([tree], device=CPU).layout.blocks
    assert block.mask is not None
    assert [row.nonzero()[:, 0].tolist() for row in block.mask[0, 0]] == [[0], [0, 1], [0, 1, 2], [0, 1, 3]]


def test_trees_lie_end_to_end_and_their_tables_come_back_in_order() -> None:
    one = AnswerTree(token_ids=ids(10), prefix_lengths=ids(1), answer_prefix=ids(20), answers=(ids(50),))
    packed = PackedTrees.build([one, small_tree()], device=CPU)
    assert packed.predictor_index.tolist() == [1, *(2 + index for index in (3, 4, 5, 3, 6, 7, 8, 6))]
    first, second = split_answers(np.arange(9, dtype=np.float32), trees=[one, small_tree()])
    assert first.tolist() == [[[0]]]
    assert second.tolist() == [[[1, 2, 3], [4, 0, 0]], [[5, 6, 7], [8, 0, 0]]]


@pytest.mark.parametrize("count", [7, 9])
def test_another_number_of_logprobs_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} log-probabilities"):
        split_answers(np.zeros(count, np.float32), trees=[small_tree()])


@pytest.mark.parametrize(
    ("prefix_lengths", "answers", "message"),
    [
        (ids(), (ids(1),), "prefix_lengths"),
        (ids(0, 2), (ids(1),), "prefix_lengths"),
        (ids(2, 1), (ids(1),), "prefix_lengths"),
        (ids(1, 4), (ids(1),), "prefix_lengths"),
        (ids(1), (), "answers"),
        (ids(1), (ids(1), ids()), "answers"),
    ],
)
def test_impossible_trees_are_refused(prefix_lengths: np.ndarray, answers: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerTree(token_ids=ids(1, 2, 3), prefix_lengths=prefix_lengths, answer_prefix=ids(), answers=answers)


def dense_mask(tree: AnswerTree) -> torch.Tensor:
    """bool[N, N] of one tree, query by query: the definition that the block masks have to equal."""
    num_trunk = int(tree.prefix_lengths[-1])
    seen = [list(range(token + 1)) for token in range(num_trunk)]
    for limit in tree.prefix_lengths.tolist():
        root = list(range(limit))
        for _ in tree.answer_prefix:
            root.append(len(seen))
            seen.append(list(root))
        for answer in tree.answers:
            path = list(root)
            for _ in answer[:-1]:
                path.append(len(seen))
                seen.append(list(path))
    mask = torch.zeros(len(seen), len(seen), dtype=torch.bool)
    for query, keys in enumerate(seen):
        mask[query, keys] = True
    return mask


def random_tree(rng: np.random.Generator) -> AnswerTree:
    length = int(rng.integers(3, 12))
    cuts = np.sort(rng.choice(np.arange(1, length + 1), size=int(rng.integers(1, 4)), replace=False))
    answers = tuple(ids(*rng.integers(0, 9, size=rng.integers(1, 4))) for _ in range(int(rng.integers(1, 4))))
    return AnswerTree(
        token_ids=ids(*rng.integers(0, 9, size=length)),
        prefix_lengths=cuts.astype(np.int32),
        answer_prefix=ids(*rng.integers(0, 9, size=rng.integers(0, 3))),
        answers=answers,
    )


@pytest.mark.parametrize("seed", range(20))
def test_block_masks_equal_the_definition_and_padding_asks_as_the_last_token_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng) for _ in range(6)]
    packed = PackedTrees.build(trees, device=CPU)
    starts = np.concatenate(([0], np.cumsum([tree.num_tokens for tree in trees])))
    num_checked = 0
    for block in packed.layout.blocks:
        assert block.mask is not None
        for row, gather in enumerate(block.gather.view(block.num_sequences, block.max_length)):
            tree = trees[int(np.searchsorted(starts, int(gather[0]), side="right")) - 1]
            expected, mask = dense_mask(tree), block.mask[row, 0]
            length = len(expected)
            assert torch.equal(mask[:length, :length], expected)
            assert torch.equal(mask[length:, :length], expected[-1:].expand(len(mask) - length, -1))
            assert not mask[:, length:].any()
            num_checked += 1
    assert num_checked == len(trees)
