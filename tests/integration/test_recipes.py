"""Every shipped recipe is run on CPU: only model, devices, sizes and data paths are replaced, the rest is its own.

Two recipes that cover all parts of configs/base run by default; the others are marked slow.
"""

import json
import sys
from pathlib import Path

import pytest
from credence_process import ROOT, metric_lines, require_success, run, summary

from system.commands.run_inputs import read_inputs
from system.config.load import load_config
from system.config.resources import actor_needs
from tests.tiny_policies import make_policy

RECIPES = [ROOT / "configs/demo.yaml", *sorted((ROOT / "configs/experiment").glob("*.yaml"))]
OVERLAYS = sorted((ROOT / "configs/algorithm").glob("*.yaml"))
COVERING = ("math_qwen2.5_math_7b_barl", "codeforces_qwen2.5_3b_intuitor")
# one problem in the form of each data set; {n} numbers the rows
ROWS: dict[str, dict[str, object]] = {
    "math": {"problem": "What is {n} plus {n}?", "solution": "It is \\boxed{{2{n}}}."},
    "gsm8k": {"question": "What is {n} plus {n}?", "answer": "It is #### 1{n}"},
    "code": {"description": "Print {n}.", "official_tests": [{"input": "1", "output": "2"}]},
}
NUM_UPDATES = 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"), is_tied=True)


def _rows(path: Path, *, task: str) -> Path:
    row = ROWS[task]
    lines = (
        json.dumps({name: value.format(n=n) if isinstance(value, str) else value for name, value in row.items()})
        for n in range(8)
    )
    path.write_text("".join(line + "\n" for line in lines))
    return path


def on_this_machine(paths: list[Path], *, policy: Path, directory: Path) -> list[str]:
    """The overrides that bring a recipe to two CPU cores and a model of two layers."""
    config = load_config(paths, check_devices=False)
    keys: dict[str, object] = {
        "run.directory": directory,
        "run.name": "recipe",
        "run.num_updates": NUM_UPDATES,
        "run.max_seconds": "null",
        "batch.prompts_per_step": 2,
        "batch.completions_per_prompt": 4,
        "batch.tokens_per_microbatch": 1024,
        "batch.optimizer_steps": min(config.batch.optimizer_steps, 2),
        "rollout.num_workers": 1,
        "rollout.max_sequences": 16,
        "rollout.kv_cache_gib": 0.25,
        "rollout.cpus_per_worker": 0.25,
        "reward.num_workers": 1,
        "reward.processes_per_worker": 1,
        "reward.cpus_per_worker": 0.25,
        "learner.num_ranks": min(config.learner.num_ranks, 2),
        "learner.cpus_per_rank": 0.25,
        "checkpoint.every_updates": "null",
        "evaluation.every_updates": "null",
        "evaluation.num_problems": 1,
        "evaluation.num_problems_final": 1,
        "evaluation.completions_per_problem_final": 2,
        "tracker.wandb_mode": "disabled",
    }
    if "scoring replica" in actor_needs(config):
        keys |= {"scorer.num_workers": 1, "scorer.cpus_per_worker": 0.25, "scorer.tokens_per_pass": 1024}
        keys |= {"scorer.device": "cpu", "scorer.dtype": "float32"}
    if not config.model.path.startswith("builtin:"):
        data = {split: _rows(directory / f"{split}.jsonl", task=config.task.name) for split in ("train", "test")}
        keys |= {
            "model.path": policy,
            "task.dataset": "null",
            "task.train_path": data["train"],
            "task.test_path": data["test"],
            "task.validation_size": min(config.task.validation_size, 2),
            "rollout.max_prompt_tokens": 256,
            "rollout.max_completion_tokens": 64,
            "rollout.device": "cpu",
            "rollout.dtype": "float32",
            "rollout.enforce_eager": "true",
            "learner.device": "cpu",
            "learner.backend": "gloo",
            "learner.dtype": "float32",
            "weight_sync.backend": "gloo",
        }
    return [f"{key}={value}" for key, value in keys.items()]


@pytest.mark.parametrize(
    "paths", [[path] for path in RECIPES] + [[RECIPES[0], path] for path in OVERLAYS], ids=lambda paths: paths[-1].stem
)
def test_a_recipe_reads_its_data_and_has_a_canary(paths: list[Path], policy: Path, tmp_path: Path) -> None:
    inputs = read_inputs(load_config(paths, on_this_machine(paths, policy=policy, directory=tmp_path)), cursor=None)
    assert inputs.held_out_prompts
    assert len(inputs.canary_token_ids) > 1
    assert inputs.training_prompts.next().reference_answer


@pytest.mark.integration
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in COVERING else [pytest.mark.slow])
        for path in [*RECIPES, *OVERLAYS]
    ],
)
def test_a_recipe_runs(path: Path, policy: Path, tmp_path: Path) -> None:
    paths = [RECIPES[0], path] if path in OVERLAYS else [path]
    overrides = on_this_machine(paths, policy=policy, directory=tmp_path)
    require_success(run([sys.executable, "-m", "system", "train", *map(str, paths), *overrides]))
    lines = metric_lines(tmp_path / "recipe")
    assert [line["policy_version"] for line in lines] == list(range(NUM_UPDATES + 1))
    figures = summary(tmp_path / "recipe")
    assert figures["ledger_balanced"] is True
    assert figures["accuracy_after"] is not None
