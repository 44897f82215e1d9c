"""A checkpoint's policy is evaluated as the run evaluated it, also when the model has several end tokens."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from credence_process import command, metric_lines, require_success, run
from transformers import AutoTokenizer

from system.config.machine import model_folder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_checkpoint_stops_at_the_end_tokens_of_the_model(tmp_path: Path) -> None:
    source = model_folder("builtin:chains_1m")
    assert source is not None
    model = tmp_path / "model"
    shutil.copytree(source, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = [tokenizer.eos_token_id, *tokenizer.encode("=", add_special_tokens=False)]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    arguments = command(tmp_path, model__path=model, run__num_updates=2, evaluation__every_updates="null")
    require_success(run(arguments))
    policy = tmp_path / "small" / "checkpoints" / "update_000002" / "policy"

    evaluated = run([*(sys.executable, "-m", "system", "evaluate"), *arguments[4:], f"model.path={policy}"])

    require_success(evaluated)
    in_the_run = metric_lines(tmp_path / "small")[-1]["metrics"]
    of_the_checkpoint = json.loads(evaluated.stdout.splitlines()[-1])
    assert 1 < in_the_run["eval/length_mean_tokens"] < 15, "an equation is cut at its equals sign"
    for name in ("eval/length_mean_tokens", "eval/accuracy_greedy", "eval/truncated_fraction"):
        assert of_the_checkpoint[name] == pytest.approx(in_the_run[name]), name
