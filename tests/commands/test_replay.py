"""A recorded update is computed again: what is as it was says so, what was changed is reported by name and place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from system.cli import main
from system.config.load import dump_yaml, load_config, to_dict
from system.config.machine import model_folder
from system.config.schema import Config
from system.data.step_files import RecordedStep, add_result, write_step
from system.records import FloatArray, Metric, StepResult
from tests.data.recorded_steps import make_step, num_prompt_tokens, token_ids_of, verdict, with_term
from tests.tiny_policies import reference_logprobs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config() -> Config:
    overrides = ["batch.completions_per_prompt=2", "learner.num_ranks=1", "batch.prompts_per_step=2"]
    return load_config([ROOT / "configs" / "demo.yaml"], overrides, check_devices=False)


@pytest.fixture(scope="module")
def policy(config: Config) -> PreTrainedModel:
    """The demo's policy as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(str(model_folder(config.model.path)), dtype=torch.float32)


@pytest.fixture(scope="module")
def step(config: Config, policy: PreTrainedModel) -> RecordedStep:
    """Written by the weights that it trains."""
    start = num_prompt_tokens() - 1
    logprobs: dict[tuple[int, int], FloatArray] = {
        (group, index): reference_logprobs(policy, token_ids_of(group, index))[start:]
        for group in range(2)
        for index in range(2)
    }
    return make_step(config, logprobs=logprobs)


def expected_metrics(step: RecordedStep, policy: PreTrainedModel) -> dict[str, float]:
    """On-policy every ratio is 1, so the loss is minus the mean advantage; its gradient by transformers alone."""
    advantages = np.concatenate(
        [values[mask] for credit in step.credit for values, mask in zip(credit.advantages, credit.in_loss, strict=True)]
    )
    terms = []
    for group, credit in enumerate(step.credit):
        for index, values in enumerate(credit.advantages):
            ids = torch.tensor([token_ids_of(group, index)])
            logprobs = policy(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            terms.append((torch.from_numpy(values[1:].copy()) * logprobs).sum())
    gradients = torch.autograd.grad(-torch.stack(terms).sum() / len(advantages), list(policy.parameters()))
    return {
        "learner/loss": -float(advantages.mean()),
        "learner/ratio_mean": 1.0,
        "learner/mismatch_kl_nats": 0.0,
        "learner/clip_fraction": 0.0,
        "learner/num_loss_tokens": float(len(advantages)),
        "learner/gradient_norm": float(torch.cat([gradient.double().flatten() for gradient in gradients]).norm()),
    }


def write_run(
    folder: Path, step: RecordedStep, *, config: Config, metrics: dict[str, float] | None, name: str = "update_000001"
) -> Path:
    """A run folder with one recorded update; without metrics the run ended before it was trained."""
    (folder / "flight_recorder").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config))
    path = folder / "flight_recorder" / f"{name}.npz"
    write_step(path, step, config=to_dict(config), evidence=None)
    if metrics is not None:
        values = tuple(Metric(name=name, value=value) for name, value in metrics.items())
        add_result(path, StepResult(policy_version=step.policy_version + 1, has_new_weights=True, metrics=values))
    return folder


def replayed(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["replay", str(folder), "--step", "1", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_all_parts_agree_with_what_was_recorded(
    step: RecordedStep, config: Config, policy: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expected_metrics(step, policy)
    code, found = replayed(write_run(tmp_path, step, config=config, metrics=expected), capsys)
    by_name = {finding["what"]: finding for finding in found["findings"]}
    assert {"reward: verifier", "advantages", "packed batch", *expected} <= set(by_name)
    assert code == 0, json.dumps([each for each in found["findings"] if not each["is_reproduced"]])
    assert by_name["reward: verifier"]["num_compared"] == 4
    assert float(by_name["learner/gradient_norm"]["again"]) == pytest.approx(
        expected["learner/gradient_norm"], rel=1e-4
    )
    assert by_name["engine against learner"]["largest_difference"] < 1e-5
    assert found["not_computed"] == []
    assert found["changed_keys"] == []


def test_a_changed_reward_is_reported_by_name_and_place(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = with_term(step, replace(verdict(value=0.0), value=1.0), group=1, completion=1)
    folder = write_run(tmp_path, changed, config=config, metrics=None)
    assert main(["replay", str(folder), "--step", "1"]) == 1
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "reward: verifier" in line and "differ" in line and "│" in line]
    assert "group 8, completion 1" in line
    assert [cell.strip() for cell in line.split("│")][2:5] == ["4", "1", "0"]
    assert "DIFFERENT: reward: verifier, reward of a completion, advantages" in text
    assert "packed batch" not in text.partition("DIFFERENT")[2], "it is that of the recorded credit"


def test_a_changed_verdict_without_a_number_is_reported_with_its_reason(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = with_term(step, replace(verdict(value=0.0), status="invalid", reason="timeout"), group=0, completion=1)
    code, found = replayed(write_run(tmp_path, changed, config=config, metrics=None), capsys)
    (rewards,) = [finding for finding in found["findings"] if finding["what"] == "reward: verifier"]
    assert code == 1
    assert (rewards["num_different"], rewards["where"]) == (1, "group 7, completion 1")
    assert (rewards["recorded"], rewards["again"]) == ("invalid (timeout)", "0 (wrong)")


def test_a_changed_advantage_is_found_in_credit_and_not_in_packing(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advantages = tuple(values.copy() for values in step.credit[1].advantages)
    advantages[0][3] += 0.5
    changed = replace(step, credit=(step.credit[0], replace(step.credit[1], advantages=advantages)))
    code, found = replayed(write_run(tmp_path, changed, config=config, metrics=None), capsys)
    different = {finding["what"]: finding for finding in found["findings"] if not finding["is_reproduced"]}
    assert code == 1
    assert set(different) == {"advantages", "packed batch"}
    assert different["advantages"]["where"] == "group 8, completion 0, token 3"
    assert different["advantages"]["largest_difference"] == pytest.approx(0.5)
    assert "advantages" in different["packed batch"]["where"]


def test_other_weights_than_those_that_were_trained_are_noticed(
    step: RecordedStep, config: Config, policy: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    moved = AutoModelForCausalLM.from_pretrained(str(model_folder(config.model.path)), dtype=torch.float32)
    with torch.no_grad():
        moved.get_input_embeddings().weight.mul_(1.02)
    moved.save_pretrained(other)
    folder = write_run(tmp_path / "run", step, config=config, metrics=expected_metrics(step, policy))
    code, found = replayed(folder, capsys, "--model", str(other))
    by_name = {finding["what"]: finding for finding in found["findings"]}
    assert code == 1
    assert not by_name["learner/mismatch_kl_nats"]["is_reproduced"]
    assert not by_name["learner/gradient_norm"]["is_reproduced"]
    assert by_name["engine against learner"]["where"].startswith("group ")
    assert by_name["packed batch"]["is_reproduced"]


def test_without_the_weights_the_rest_is_computed_and_it_is_said_what_would_help(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = make_step(config, policy_version=4)
    folder = write_run(tmp_path, later, config=config, metrics={"learner/gradient_norm": 0.0}, name="update_000005")
    assert main(["replay", str(folder), "--step", "5"]) == 0
    text = capsys.readouterr().out
    assert "not computed: learner metrics: it needs the weights of policy version 4" in text
    assert "--model FOLDER" in text
    assert "all that was computed is as recorded" in text


def test_a_batch_that_ended_its_run_is_computed_without_a_comparison(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, step, config=config, metrics=None, name="update_000001.pending")
    code, found = replayed(folder, capsys)
    by_name = {finding["what"]: finding for finding in found["findings"]}
    assert (code, found["state"]) == (0, "pending")
    assert by_name["learner/loss"]["recorded"] == "-"
    assert float(by_name["learner/ratio_mean"]["again"]) == pytest.approx(1.0, abs=1e-5)


def test_a_changed_bit_ends_in_one_line(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, step, config=config, metrics={"learner/gradient_norm": 0.0})
    path = folder / "flight_recorder" / "update_000001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert main(["replay", str(folder), "--step", "1"]) == 2
    assert (
        capsys.readouterr().err == f"credence: {path} has other content than was written: it was damaged or cut off\n"
    )


def test_what_is_recorded_is_listed_and_anything_else_refused_by_name(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", step, config=config, metrics={"learner/gradient_norm": 0.0})
    write_run(folder, make_step(config, policy_version=8), config=config, metrics=None, name="update_000009.pending")
    assert main(["replay", str(folder)]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()][:2] == [
        "update 1",
        "update 9 (pending)",
    ]
    assert main(["replay", str(folder), "--step", "4"]) == 2
    assert "update 4 is not recorded" in (text := capsys.readouterr().err)
    assert "these are: 1, 9 (pending)" in text
    assert main(["replay", str(tmp_path), "--step", "4"]) == 2
    assert "expected a run folder, which holds config.yaml" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert main(["replay", str(tmp_path), "--step", "4"]) == 2
    assert "has no recorded update" in capsys.readouterr().err
    assert main(["replay", str(folder), "--step", "1", "--model", str(tmp_path)]) == 2
    assert "expected a model folder" in capsys.readouterr().err


def test_keys_that_a_later_session_changed_are_named(
    step: RecordedStep, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, step, config=config, metrics=None)
    (folder / "config.yaml").write_text(dump_yaml(replace(config, run=replace(config.run, num_updates=77))))
    _, found = replayed(folder, capsys)
    assert found["changed_keys"] == ["run.num_updates"]
