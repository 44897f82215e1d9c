"""The derivation from the three batch knobs, and what is placed where, against numbers worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from system.commands.plan import count_parameters, learner_state_bytes, plan_batch, plan_run, plan_text
from system.config.load import load_config
from system.config.resources import actor_needs
from system.config.schema import BatchConfig, Config, LearnerConfig
from system.errors import ConfigError

MONITORED = "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]"


def test_one_step_follows_from_the_three_knobs() -> None:
    batch = BatchConfig(prompts_per_step=8, completions_per_prompt=4, tokens_per_microbatch=1000)
    plan = plan_batch(batch, max_sequence_tokens=200, num_ranks=2)
    assert plan.completions_per_step == 32
    assert plan.sequences_per_rank == 16
    assert plan.max_tokens_per_step == 6400
    assert plan.max_microbatches_per_rank == 4  # 16 sequences, 5 of the longest in 1000 tokens


def test_the_run_is_counted(make_config: Callable[..., Config]) -> None:
    config = make_config(
        "run.num_updates=100",
        "evaluation.every_updates=20",
        "evaluation.num_problems=10",
        "evaluation.num_problems_final=50",
        "evaluation.completions_per_problem_final=4",
        "checkpoint.every_updates=50",
        "task.validation_size=500",
        "learner.learning_rate=1e-4",
        "learner.warmup_ratio=0.1",
        "learner.final_lr_ratio=0.1",
    )
    plan = plan_run(config)
    assert (plan.num_prompts, plan.num_completions) == (800, 3200)
    assert plan.num_problems["train"] == 6262  # 6,762 chains, 500 of them held out
    assert plan.num_problems["validation"] == 500
    assert plan.num_evaluations == 6  # start, after 20, 40, 60, 80, and end
    assert plan.evaluation_completions == 2 * 50 * (1 + 4) + 4 * 10 * (1 + 1)
    assert plan.num_checkpoints == 2  # after 50 and at the end
    assert dict(plan.learning_rates) == pytest.approx({0: 1e-5, 9: 1e-4, 54: plan.learning_rates[2][1], 99: 1e-5})
    assert 4e-5 < plan.learning_rates[2][1] < 7e-5


def test_no_periodic_evaluation_leaves_start_and_end(make_config: Callable[..., Config]) -> None:
    plan = plan_run(make_config("evaluation.every_updates=null", "checkpoint.every_updates=null"))
    assert (plan.num_evaluations, plan.num_checkpoints) == (2, 1)


def test_a_validation_split_that_takes_every_chain_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"^task\.validation_size: given 7000"):
        plan_run(make_config("task.validation_size=7000"))


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"),
    [
        (0, 4 + 4 + 8),  # weights, gradients, two moments
        (1, 4 + 4 + 12 / 2),  # master weights and moments split over two ranks
        (2, 4 + 4 / 2 + 12 / 2),
        (3, 4 / 2 + 4 / 2 + 12 / 2),
    ],
)
def test_learner_state_is_split_by_zero_stage(stage: int, bytes_per_parameter: float) -> None:
    learner = LearnerConfig(num_ranks=2, zero_stage=stage, learning_rate=1e-4)
    assert learner_state_bytes(learner, num_parameters=1000) == 1000 * bytes_per_parameter


def test_parameters_are_counted_from_safetensors_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(2)}, tmp_path / "two.safetensors")
    assert count_parameters(tmp_path) == 19
    assert count_parameters(tmp_path / "nothing") is None


def test_every_actor_is_placed(make_config: Callable[..., Config]) -> None:
    needs = actor_needs(make_config("learner.num_ranks=2"))
    assert [(need.kind, need.count, need.device, need.cpus, need.gpus) for need in needs.values()] == [
        ("rollout worker", 1, "cpu", 0.5, 0),
        ("learner rank", 2, "cpu", 0.5, 0),
        ("reward worker", 1, "cpu", 0.25, 0),
    ]


def test_scoring_replicas_are_placed_when_a_reward_needs_them(make_config: Callable[..., Config]) -> None:
    config = make_config(
        "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0.5}]",
        *("scorer.num_workers=2", "scorer.cpus_per_worker=0.25", "scorer.mode=ema"),
    )
    replicas = actor_needs(config)["scoring replica"]
    assert (replicas.count, replicas.cpus, replicas.gpus) == (2, 0.25, 0)
    text = plan_text(config)
    assert "scoring replica       2  cpu     0.25     0  self_certainty; float32, moving average of the weights" in text
    assert "to 1 rollout workers broadcast by gloo, to 2 scoring replicas from the store" in text
    assert "reward: 1 x verifier, 0.5 x self_certainty" in text


def test_replicas_on_gpus_may_share_one(minimal_overrides: list[str]) -> None:
    overrides = [MONITORED, "scorer.device=cuda", "scorer.gpus_per_worker=0.25"]
    config = load_config([], [*minimal_overrides, *overrides], check_devices=False)
    assert actor_needs(config)["scoring replica"].gpus == 0.25


def test_the_page_states_the_derivation(make_config: Callable[..., Config]) -> None:
    text = plan_text(make_config("run.max_seconds=60", "task.validation_size=500"))
    assert "32 = 8 prompts x 4 completions" in text
    assert "at most 7 per rank of 1,024 tokens" in text  # 32 sequences, 5 of 200 tokens in 1,024
    assert "10 updates, or until 60 s have passed" in text
    assert "0.01 passes" in text
    assert "train                6,262 problems" in text


def test_the_page_names_rows_that_were_left_out(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [f'{{"problem": "p{number}", "solution": "\\\\boxed{{{number}}}"}}' for number in range(120)]
    rows[3] = '{"problem": "empty", "solution": "\\\\boxed{}"}'
    rows[7] = "{broken"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    overrides = ["task.name=math", f"task.train_path={path}", f"task.test_path={path}", "task.validation_size=0"]
    text = plan_text(make_config(*overrides))
    assert "118 problems from 120 rows; 1 with an empty box, left out; 1 malformed, left out (first: line 8, " in text
    assert "validation           0 problems" in text


def test_the_plan_says_what_beliefs_are_over(make_config: Callable[..., Config]) -> None:
    text = plan_text(make_config("algorithm.name=barl", "algorithm.options.candidates=3", MONITORED))
    assert "self_certainty, beliefs over the reference answer and at most 3 candidates; float32, newest weights" in text
    text = plan_text(make_config("algorithm.name=progress"))
    assert "  beliefs over the reference answer; float32" in text
