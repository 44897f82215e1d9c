"""The warm start writes a policy folder that loads, whole or not at all; the shipped policy is one of them."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from system.cli import main
from system.commands.warmstart import (
    Progression,
    WarmstartSettings,
    build_policy,
    completion_loss,
    learning_rate_at,
    parse_settings,
    run_warmstart,
)
from system.data.chains.accuracy import measure_accuracy
from system.data.chains.examples import ExampleSource, stream_batches
from system.data.character_tokenizer import build_character_tokenizer, character_ids
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.errors import ConfigError

POLICY = Path(__file__).parents[2] / "system" / "data" / "policies" / "chains_1m"
TINY = WarmstartSettings(
    num_steps=4,
    batch_size=4,
    num_warmup_steps=2,
    hidden_size=32,
    num_layers=1,
    intermediate_size=32,
    evaluation_interval_steps=4,
    num_evaluation_problems=4,
    num_final_problems=4,
    max_new_tokens=8,
    num_threads=1,
)


def test_tiny_run_writes_a_folder_that_loads(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    seen: list[Progression] = []
    settings = dataclasses.replace(TINY, out=str(tmp_path / "policy"))
    result = run_warmstart(settings, observer=lambda progression, model: seen.append(progression))
    assert [progression.step for progression in seen] == [4]
    assert 1.0 < result.final_loss < 1.5 * math.log(32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.num_parameters() == result.num_parameters
    assert model.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.decode(tokenizer.encode("1+1:1+1=2\n#2")) == "1+1:1+1=2\n#2"
    assert json.loads((tmp_path / "policy" / "tokenizer.json").read_text())["padding"] is None
    record = json.loads((tmp_path / "policy" / "warmstart.json").read_text())
    assert record == {"settings": dataclasses.asdict(settings), "result": dataclasses.asdict(result)}
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_interrupted_run_writes_nothing(tmp_path: Path) -> None:
    def interrupt(progression: Progression, model: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_warmstart(dataclasses.replace(TINY, out=str(tmp_path / "policy")), observer=interrupt)
    assert list(tmp_path.iterdir()) == []


def is_group_alive(group_id: int) -> bool:
    try:
        os.killpg(group_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.integration
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_command_leaves_no_process_and_no_folder(signal_number: signal.Signals, tmp_path: Path) -> None:
    tiny = [f"{key}={getattr(TINY, key)}" for key in ("batch_size", "hidden_size", "num_layers", "num_threads")]
    # Short evaluations at once: their line shows that it trains.
    evaluation = ["evaluation_interval_steps=2", "num_evaluation_problems=2", "max_new_tokens=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "system.commands.warmstart", f"out={tmp_path / 'policy'}", *tiny, *evaluation],
        cwd=POLICY.parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step") for line in lines)
    os.kill(process.pid, signal_number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted, nothing was written" in output
    deadline = time.monotonic() + 10
    while is_group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_group_alive(process.pid)
    assert list(tmp_path.iterdir()) == []


def test_streamed_batches_follow_from_the_seed() -> None:
    tokenizer = build_character_tokenizer(max_length=512)
    streams = [
        stream_batches(character_ids(tokenizer), eos_token_id=1, seed=seed, validation_size=500, batch_size=4)
        for seed in (3, 3, 4)
    ]
    first, second, other = ([next(stream) for _ in range(3)] for stream in streams)
    for stream in streams:
        stream.close()
    assert first == second
    assert first != other


def test_loss_sees_completion_tokens_only() -> None:
    """With all logits equal every token costs log V, whatever the padding; the gradient of prompt logits is zero."""
    tokenizer = build_character_tokenizer(max_length=512)
    source = ExampleSource(character_ids(tokenizer), eos_token_id=1, seed=0, validation_size=500)
    batch = source.draw(0, num_examples=3)
    assert all(example.token_ids[-1] == tokenizer.eos_token_id for example in batch)
    assert all(tokenizer.decode(example.token_ids[: example.prompt_length]).endswith(":") for example in batch)
    model = build_policy(TINY, tokenizer=tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    loss = completion_loss(model, batch, pad_token_id=tokenizer.pad_token_id)
    assert loss.item() == pytest.approx(math.log(32), rel=1e-6)


def test_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    settings = WarmstartSettings(
        num_steps=110, num_warmup_steps=10, learning_rate=1.0, final_learning_rate_fraction=0.1
    )
    assert learning_rate_at(0, settings=settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings=settings) == pytest.approx(1.0)
    assert learning_rate_at(60, settings=settings) == pytest.approx(0.55)
    assert learning_rate_at(110, settings=settings) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_step=3", "num_step: given 'num_step=3', expected key=value with one of out, seed, num_steps"),
        ("num_steps", "num_steps: given 'num_steps', expected key=value"),
        ("num_steps=many", "num_steps: given 'many', expected int"),
        ("num_steps=0", "num_steps: given 0, expected at least 1"),
        ("device=tpu", "device: given 'tpu', expected cpu or cuda"),
        ("hidden_size=100", "hidden_size: given 100, expected a multiple of the head size 32. Fix: hidden_size=96"),
        ("validation_size=7000", "task.validation_size: given 7000"),
        ("out=.", "out: given '.', expected a folder that does not exist yet"),
    ],
)
def test_wrong_setting_ends_in_one_clear_line(
    argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["warmstart", f"out={tmp_path / 'policy'}", argument]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_parsed_by_their_types() -> None:
    settings = parse_settings(["num_steps=7", "learning_rate=1e-4", "out=here"])
    assert (settings.num_steps, settings.learning_rate, settings.out) == (7, 1e-4, "here")
    with pytest.raises(ConfigError):
        parse_settings(["learning_rate=fast"])


def test_shipped_policy_is_small_loads_and_is_as_good_as_recorded() -> None:
    torch.set_num_threads(1)
    assert sum(path.stat().st_size for path in POLICY.iterdir()) <= 5_000_000
    record = json.loads((POLICY / "warmstart.json").read_text())
    assert record["settings"] == dataclasses.asdict(WarmstartSettings())
    recorded = record["result"]["test"]
    assert 0.20 <= recorded["greedy"] <= 0.50
    assert recorded["sampled"] < recorded["greedy"]
    assert recorded["answered"] > 0.97
    problems = Gsm8kChainsTask().load("test")[:100]
    measured = measure_accuracy(
        AutoModelForCausalLM.from_pretrained(POLICY),
        problems,
        tokenizer=AutoTokenizer.from_pretrained(POLICY),
        max_new_tokens=128,
        seed=0,
    )
    # Three standard errors of 100 problems.
    assert measured.greedy == pytest.approx(recorded["greedy"], abs=0.13)
    assert measured.sampled == pytest.approx(recorded["sampled"], abs=0.13)
