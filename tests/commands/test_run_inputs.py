"""What a run reads before it starts anything: canary, prompts, and what is wrong with them."""

from pathlib import Path

import pytest

from system.commands.run_inputs import canary_token_ids, load_tokenizer, read_inputs
from system.config.load import load_config
from system.config.machine import model_folder
from system.data.tasks import make_task
from system.errors import ConfigError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def test_the_canary_is_a_held_out_problem_or_one_of_training_where_none_is_held_out() -> None:
    config, without = (load_config([DEMO], [f"task.validation_size={size}"]) for size in (500, 0))
    tokenizer = load_tokenizer(config)
    task, task_without = make_task(config.task), make_task(without.task)
    assert task_without.load("validation") == []
    first = task.load("validation")[0], task_without.load("train")[0]
    for each_task, problem in zip((task, task_without), first, strict=True):
        text = each_task.prompt_text(problem, tokenizer=tokenizer) + problem.solution
        expected = tokenizer.encode(text, add_special_tokens=False)[:48]
        assert canary_token_ids(each_task, tokenizer=tokenizer) == expected
        assert len(expected) > 10


def test_everything_is_read_without_a_validation_split() -> None:
    inputs = read_inputs(load_config([DEMO], ["task.validation_size=0"]), cursor=None)
    assert len(inputs.held_out_prompts) == 500
    assert inputs.training_prompts.next().prompt_id.startswith("train/")


def test_an_empty_held_out_split_is_found_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.split: given .test., expected a split"):
        read_inputs(load_config([DEMO], ["rollout.max_prompt_tokens=1"]), cursor=None)


def test_a_run_folder_stands_for_the_policy_of_its_newest_checkpoint(tmp_path: Path) -> None:
    for name in ("update_000050", "update_000100", "update_000120.partial"):
        (tmp_path / "checkpoints" / name / "policy").mkdir(parents=True)
    assert model_folder(str(tmp_path)) == tmp_path / "checkpoints" / "update_000100" / "policy"
    assert model_folder(str(tmp_path / "checkpoints")) == tmp_path / "checkpoints"
