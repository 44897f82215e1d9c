"""Beliefs, values and advantages of BARL against tables computed by hand and against the equations in plain loops."""

import math
from typing import Any

import numpy as np
import pytest

from system.algorithms.barl.belief import Belief, choose_candidates, compute_belief, reduce_token_logprobs
from system.algorithms.steps import spread_to_tokens

INF = math.inf


def logs(*rows: list[float]) -> np.ndarray:
    """Log-probabilities from probabilities; rows are steps, columns hypotheses."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float64))


def close(actual: np.ndarray, expected: Any, *, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance)


# The policy first believes y_1, sees the reference gain, and ends on the reference:
#   r_0 = 0.3, 0.3    r_1 = -0.4, -0.1    |r_0 - r_1| = 0.7, 0.4
#   P[S, 0] - P[t, 0] = 0.6, 0.3    P[S, 1] - P[t, 1] = -0.5, -0.1
MISPREDICTED = logs([0.2, 0.6], [0.5, 0.2], [0.8, 0.1])


def test_one_hypothesis_gives_the_progress_baseline() -> None:
    # r = 0.5 - 0.2, 0.4 - 0.5; outcome + P[S, 0] - P[t, 0] = 1 + 0.2, 1 - 0.1
    belief = compute_belief(logs([0.2], [0.5], [0.4]), is_right=True)
    close(belief.rewards, [[0.3], [-0.1]])
    assert belief.log_consistency.tolist() == [[0.0], [0.0], [0.0]]
    assert belief.posterior.tolist() == [[1.0], [1.0], [1.0]]
    close(belief.step_values, [1.2, 0.9])


def test_a_hypothesis_that_mispredicts_loses_its_weight() -> None:
    belief = compute_belief(MISPREDICTED, is_right=True)
    close(belief.rewards, [[0.3, -0.4], [0.3, -0.1]])
    close(
        belief.log_credibility,
        [[-1.60943791, -0.51082562], [-0.69314718, -1.60943791], [-0.22314355, -2.30258509]],
        tolerance=1e-8,
    )
    close(belief.log_consistency, [[0.0, 0.0], [0.0, -0.7], [0.0, -1.1]])
    # row 0: 0.2 to 0.6; row 1: 0.5 to 0.2 * 0.4965853038 (e^-0.7); row 2: 0.8 to 0.1 * 0.3328710837 (e^-1.1)
    close(belief.posterior, [[0.25, 0.75], [0.8342829409, 0.1657170591], [0.9600532541, 0.0399467459]])
    # 1 + 0.25 * 0.6 - 0.75 * 0.5; 1 + 0.8342829409 * 0.3 - 0.1657170591 * 0.1
    close(belief.step_values, [0.775, 1.2337131764])


def test_the_outcome_is_paid_once_whatever_is_believed() -> None:
    right, wrong = (compute_belief(MISPREDICTED, is_right=verdict) for verdict in (True, False))
    close(right.step_values - wrong.step_values, [1.0, 1.0])
    close(right.posterior, wrong.posterior)


def test_misprediction_alone_lowers_the_weight_of_an_equally_credible_hypothesis() -> None:
    # r_0 = 0.3, -0.3 and r_1 = 0: both end at 0.3, yet y_1 has mispredicted 0.3 twice: 1 to 0.5488116361 (e^-0.6)
    belief = compute_belief(logs([0.3, 0.3], [0.6, 0.3], [0.3, 0.3]), is_right=True)
    close(belief.posterior[0], [0.5, 0.5])
    close(belief.posterior[2], [0.6456563062, 0.3543436938])
    # the same with beta = 5: 1 to 0.0497870684 (e^-3)
    sharper = compute_belief(logs([0.3, 0.3], [0.6, 0.3], [0.3, 0.3]), is_right=True, beta=5.0)
    close(sharper.posterior[2], [0.9525741268, 0.0474258732])


def test_beta_zero_leaves_credibility_alone() -> None:
    belief = compute_belief(MISPREDICTED, is_right=True, beta=0.0)
    assert belief.log_consistency.tolist() == [[0.0, 0.0]] * 3
    # 2 : 6, 5 : 2, 8 : 1
    close(belief.posterior, [[2 / 8, 6 / 8], [5 / 7, 2 / 7], [8 / 9, 1 / 9]])
    # 1 + (2 * 0.6 - 6 * 0.5) / 8, 1 + (5 * 0.3 - 2 * 0.1) / 7
    close(belief.step_values, [0.775, 1.1857142857])


def test_the_most_believed_hypothesis_switches_when_a_rival_explains_the_rewards() -> None:
    # r_0 = 0.05, 0.55; r_1 = -0.1, -0.4; r_2 = 0.05, 0.05; |r_0 - r_1| = 0.15, 0.95; |r_0 - r_2| = 0, 0.5
    table = logs([0.10, 0.60, 0.05], [0.15, 0.50, 0.10], [0.70, 0.10, 0.15])
    belief = compute_belief(table, is_right=True)
    close(belief.log_consistency, [[0, 0, 0], [0, -0.15, 0.0], [0, -1.1, -0.5]])
    # row 1: 0.15, 0.5 * 0.8607079764 = 0.4303539882, 0.1: sum 0.6803539882
    # row 2: 0.7, 0.1 * 0.3328710837 = 0.0332871084, 0.15 * 0.6065306597 = 0.0909795990: sum 0.8242667073
    close(
        belief.posterior,
        [
            [0.1333333333, 0.8, 0.0666666667],
            [0.2204734632, 0.6325442280, 0.1469823088],
            [0.8492396864, 0.0403839050, 0.1103764087],
        ],
    )
    assert belief.posterior.argmax(axis=1).tolist() == [1, 1, 0]
    # to go: y_0 0.6, 0.55; y_1 -0.5, -0.4; y_2 0.1, 0.05
    # 1 + 0.08 - 0.4 + 0.0066666667; 1 + 0.1212604048 - 0.2530176912 + 0.0073491154
    close(belief.step_values, [0.6866666667, 0.8755918290])


def test_a_wrong_answer_that_is_believed_in_pays_its_progress_and_no_outcome() -> None:
    # w = 1/9, 8/9; to go 0 and 0.1
    belief = compute_belief(logs([0.1, 0.8], [0.1, 0.9]), is_right=False)
    close(belief.step_values, [0.8 / 9])


def test_a_late_switch_to_the_reference_is_worth_more_than_the_wrong_answer_it_left() -> None:
    # w = 1/9, 8/9; to go 0.7 and -0.7: 1 + (0.7 - 8 * 0.7) / 9
    belief = compute_belief(logs([0.1, 0.8], [0.8, 0.1]), is_right=True)
    close(belief.step_values, [4.1 / 9])


@pytest.mark.parametrize("offset", [-110.0, -2000.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_probabilities_that_underflow_keep_their_ratios(offset: float, dtype: type, tolerance: float) -> None:
    # e^-110 is 0 in float32, e^-2000 in float64 too. ln 3 = 1.0986122887, ln 4 = 1.3862943611
    assert np.exp(np.float32(offset)) == 0.0
    table: np.ndarray = np.array([[offset - 1.0986122887, offset], [offset, offset - 1.3862943611]], dtype=dtype)
    belief = compute_belief(table, is_right=True)
    close(belief.posterior, [[0.25, 0.75], [0.8, 0.2]], tolerance=tolerance)
    # all probabilities count as 0: the outcome is left
    close(belief.step_values, [1.0], tolerance=1e-40)


def test_a_response_without_steps_has_a_belief_and_no_values() -> None:
    belief = compute_belief(logs([0.2, 0.6]), is_right=True)
    close(belief.posterior, [[0.25, 0.75]])
    assert belief.log_consistency.tolist() == [[0.0, 0.0]]
    assert (belief.rewards.shape, belief.step_values.shape) == ((0, 2), (0,))
    assert spread_to_tokens(belief.step_values, step_ends=np.array([], dtype=np.int32), num_tokens=0).tolist() == []


def test_impossible_answers_have_no_weight_and_a_row_of_them_follows_consistency_alone() -> None:
    # P_0 = 0, 0.5, 0, 0.5; P_1 = 0, 0.2, 0, 0: r_0 = 0.5, -0.5, 0.5; r_1 = 0.2, -0.2, 0
    table = logs([0.0, 0.0], [0.5, 0.2], [0.0, 0.0], [0.5, 0.0])
    belief = compute_belief(table, is_right=True)
    close(belief.rewards, [[0.5, 0.2], [-0.5, -0.2], [0.5, 0.0]])
    close(belief.log_consistency[:, 1], [0.0, -0.3, -0.6, -1.1])
    # row 1: 0.5 to 0.2 * 0.7408182207 (e^-0.3); row 2: 1 to 0.5488116361 (e^-0.6)
    close(belief.posterior, [[0.5, 0.5], [0.7714101285, 0.2285898715], [0.6456563062, 0.3543436938], [1.0, 0.0]])
    # to go: y_0 0.5, 0, 0.5; y_1 0, -0.2, 0
    close(belief.step_values, [1.25, 0.9542820257, 1.3228281531])


def test_an_impossible_reference_leaves_all_weight_to_the_others() -> None:
    belief = compute_belief(logs([0.0, 0.3], [0.0, 0.5]), is_right=False)
    assert belief.posterior.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    close(belief.step_values, [0.2])
    alone = compute_belief(logs([0.0], [0.0]), is_right=True)
    assert alone.posterior.tolist() == [[1.0], [1.0]]
    assert alone.step_values.tolist() == [1.0]


def test_rounding_above_zero_counts_as_certainty() -> None:
    belief = compute_belief(np.array([[5e-5], [0.0]]), is_right=True)
    assert belief.log_credibility.tolist() == [[0.0], [0.0]]
    assert belief.rewards.tolist() == [[0.0]]


def plain_loops(table: list[list[float]], *, outcome: float, beta: float) -> dict[str, list]:
    """The equations as they stand, on probabilities, with none of the closed forms."""
    num_steps, num_hypotheses = len(table) - 1, len(table[0])
    probability = [[math.exp(entry) for entry in row] for row in table]
    reward = [[probability[t + 1][i] - probability[t][i] for i in range(num_hypotheses)] for t in range(num_steps)]
    to_go = [
        [sum(reward[later][i] for later in range(t, num_steps)) for i in range(num_hypotheses)]
        for t in range(num_steps)
    ]
    consistency, posterior = [], []
    for t in range(num_steps + 1):
        factors = []
        for i in range(num_hypotheses):
            factor = 1.0
            for earlier in range(t):
                factor *= math.exp(-beta * abs(reward[earlier][i] - reward[earlier][0]))
            factors.append(factor)
        weights = [probability[t][i] * factors[i] for i in range(num_hypotheses)]
        consistency.append([math.log(factor) for factor in factors])
        posterior.append([weight / sum(weights) for weight in weights])
    step_values = [
        outcome + sum(posterior[t][i] * to_go[t][i] for i in range(num_hypotheses)) for t in range(num_steps)
    ]
    return {
        "rewards": reward,
        "log_credibility": table,
        "log_consistency": consistency,
        "posterior": posterior,
        "step_values": step_values,
    }


def random_belief(rng: np.random.Generator) -> tuple[np.ndarray, bool, float, Belief]:
    shape = (int(rng.integers(1, 9)), int(rng.integers(1, 7)))
    table = -rng.exponential(scale=float(rng.choice([0.3, 2.0, 20.0])), size=shape)
    is_right, beta = bool(rng.integers(0, 2)), float(rng.choice([0.0, 0.5, 1.0, 4.0]))
    return table, is_right, beta, compute_belief(table, is_right=is_right, beta=beta)


def test_closed_forms_equal_the_equations_in_plain_loops_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        table, is_right, beta, belief = random_belief(rng)
        expected = plain_loops(table.tolist(), outcome=float(is_right), beta=beta)
        for name, numbers in expected.items():
            actual = getattr(belief, name)
            close(actual, np.array(numbers).reshape(actual.shape), tolerance=1e-12)
        close(belief.posterior.sum(axis=1), np.ones(len(table)), tolerance=1e-12)


def test_the_order_of_the_candidates_does_not_matter_and_the_reference_alone_is_progress() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        table, is_right, beta, belief = random_belief(rng)
        order = np.concatenate([[0], 1 + rng.permutation(table.shape[1] - 1)])
        reordered = compute_belief(table[:, order], is_right=is_right, beta=beta)
        close(reordered.posterior, belief.posterior[:, order], tolerance=1e-12)
        close(reordered.step_values, belief.step_values, tolerance=1e-12)
        progress = compute_belief(table[:, :1], is_right=is_right, beta=beta)
        reference = np.exp(table[:, 0])
        close(progress.step_values, is_right + reference[-1] - reference[:-1], tolerance=1e-12)


def test_answer_logprobs_are_summed_or_averaged_over_the_tokens_of_each_answer() -> None:
    # y_0 has 2 tokens, y_1 has 3; what lies behind y_0 is padding
    tokens = np.array([[[-1.0, -2.0, np.nan], [-0.5, -1.0, -3.0]], [[-0.25, 0.0, INF], [-1.0, -INF, -1.0]]])
    lengths = np.array([2, 3], dtype=np.int32)
    assert reduce_token_logprobs(tokens, lengths=lengths).tolist() == [[-3.0, -4.5], [-0.25, -INF]]
    averaged = reduce_token_logprobs(tokens, lengths=lengths, reduction="mean")
    assert averaged.tolist() == [[-1.5, -1.5], [-0.125, -INF]]


def test_token_logprobs_are_added_in_float64() -> None:
    # 2^24 + 1 is no float32
    tokens = np.array([[[-16_777_216.0, -1.0]]], dtype=np.float32)
    assert reduce_token_logprobs(tokens, lengths=np.array([2])).tolist() == [[-16_777_217.0]]


@pytest.mark.parametrize(
    ("class_indices", "options", "expected"),
    [
        # class 1 has three completions, 0 and 2 one each: first seen first
        ([2, 1, 0, 1, 1], {}, [1, 0, 2]),
        # no answer is no candidate, however frequent
        ([-1, 0, -1, -1], {}, [1]),
        ([-1, -1], {}, []),
        ([], {}, []),
        # the most frequent answer is the reference
        ([0, 0, 0, 1, 2, 2], {"reference_class": 0}, [4, 3]),
        # nobody answered like the reference
        ([0, 0, 1], {"reference_class": 7}, [0, 2]),
        # two ties at the end of the list
        ([3, 0, 0, 1, 1, 2, 2], {"max_candidates": 2}, [1, 3]),
        # leaving out the reference makes room
        ([3, 0, 0, 1, 1, 2, 2], {"max_candidates": 2, "reference_class": 0}, [3, 5]),
        ([5, 4, 3, 2, 1, 0], {}, [0, 1, 2, 3, 4]),
        ([0, 1], {"max_candidates": 0}, []),
    ],
)
def test_candidates_are_distinct_answers_most_frequent_first(
    class_indices: list[int], options: dict, expected: list[int]
) -> None:
    assert choose_candidates(class_indices, **options) == expected


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (np.zeros(3), {}, r"answer_logprobs must be \[S\+1, K\+1\] .* \(3,\)"),
        (np.zeros((0, 1)), {}, r"answer_logprobs must be \[S\+1, K\+1\]"),
        (np.zeros((2, 0)), {}, r"answer_logprobs must be \[S\+1, K\+1\]"),
        (np.zeros((2, 1), dtype=np.int64), {}, "answer_logprobs must be floating point, got int64"),
        (np.array([[math.nan]]), {}, "answer_logprobs must be finite or -inf, got NaN"),
        (np.array([[INF]]), {}, r"answer_logprobs must be finite or -inf, got NaN or \+inf"),
        (np.array([[2e-4]]), {}, "answer_logprobs must be log-probabilities, <= 0, got 0.0002"),
        (np.zeros((2, 1)), {"beta": -0.1}, "beta must be finite and >= 0, got -0.1"),
        (np.zeros((2, 1)), {"beta": math.nan}, "beta must be finite"),
        (np.zeros((2, 1)), {"beta": INF}, "beta must be finite"),
    ],
)
def test_bad_tables_are_refused(table: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_belief(table, is_right=True, **options)


@pytest.mark.parametrize(
    ("tokens", "lengths", "reduction", "message"),
    [
        (np.zeros((2, 1)), np.array([1]), "sum", r"token_logprobs must be float\[S\+1, K\+1, A\]"),
        (np.zeros((2, 1, 3), dtype=np.int64), np.array([1]), "sum", "token_logprobs must be float"),
        (np.zeros((2, 1, 3)), np.array([1, 1]), "sum", r"lengths must be int\[K\+1\]"),
        (np.zeros((2, 1, 3)), np.array([1.0]), "sum", r"lengths must be int\[K\+1\]"),
        (np.zeros((2, 1, 3)), np.array([0]), "sum", r"within 1 and A = 3, got \[0\]"),
        (np.zeros((2, 1, 3)), np.array([4]), "sum", r"within 1 and A = 3, got \[4\]"),
        (np.zeros((2, 1, 3)), np.array([3]), "max", "'sum' or 'mean', got 'max'"),
        (np.array([[[math.nan]]]), np.array([1]), "sum", "token_logprobs must be finite or -inf"),
        (np.array([[[INF, -INF]]]), np.array([2]), "sum", "token_logprobs must be finite or -inf"),
        (np.array([[[0.5, -1.0]]]), np.array([2]), "sum", "token_logprobs must be log-probabilities, <= 0, got 0.5"),
    ],
)
def test_bad_token_logprobs_are_refused(tokens: np.ndarray, lengths: np.ndarray, reduction: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reduce_token_logprobs(tokens, lengths=lengths, reduction=reduction)


@pytest.mark.parametrize(
    ("class_indices", "options", "message"),
    [
        ([0, -2], {}, "class_indices must be integers >= -1, got -2"),
        ([0.0], {}, "class_indices must be integers >= -1, got 0.0"),
        ([0], {"reference_class": -1}, "reference_class must be None or >= 0, got -1"),
        ([0], {"max_candidates": -1}, "max_candidates must be >= 0, got -1"),
    ],
)
def test_bad_candidates_are_refused(class_indices: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_candidates(class_indices, **options)
