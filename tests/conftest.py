"""What every test may use: quiet, offline, one thread a process, and a small valid configuration."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from system.config.load import load_config
from system.config.schema import Config

# Before any test imports torch, Ray or W&B: two cores are shared, and no test may ask anything over the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("WANDB_SILENT", "true")

REPOSITORY = Path(__file__).parents[1]

# The required keys and nothing else; model.path comes from the fixture.
MINIMAL_OVERRIDES = (
    "run.name=test",
    "run.num_updates=10",
    "task.name=gsm8k_chains",
    "batch.prompts_per_step=8",
    "batch.completions_per_prompt=4",
    "batch.tokens_per_microbatch=1024",
    "rollout.max_prompt_tokens=72",
    "rollout.max_completion_tokens=128",
    "learner.learning_rate=5e-5",
)


@pytest.fixture
def model_description(tmp_path: Path) -> Path:
    """A folder with the config.json of a small causal LM and one number: enough for configuration checks."""
    folder = tmp_path / "model"
    folder.mkdir()
    description = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 256, "vocab_size": 32}
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


@pytest.fixture
def minimal_overrides(model_description: Path) -> list[str]:
    """Overrides that make a valid configuration on their own."""
    return [*MINIMAL_OVERRIDES, f"model.path={model_description}"]


@pytest.fixture
def make_config(minimal_overrides: list[str]) -> Callable[..., Config]:
    """Builds the minimal configuration with further `key=value` overrides."""

    def make(*overrides: str) -> Config:
        return load_config([], [*minimal_overrides, *overrides])

    return make
