"""The learner's part of a checkpoint, and the export in Hugging Face format.

The caller gives an empty temporary folder and renames it when all ranks are done; a folder seen under its final
name is complete. All ranks call these functions with the same folder, on a file system that they share.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig

from learner.deepspeed_engine import DeepSpeedEngine
from system.errors import CheckpointError

_STATE_FILE = "learner.json"


@dataclass(frozen=True, kw_only=True)
class LearnerState:
    """What DeepSpeed does not keep, and what must not change between saving and loading."""

    policy_version: int
    num_ranks: int
    zero_stage: int
    dtype: str


def save_checkpoint(directory: str, *, engine: DeepSpeedEngine, state: LearnerState, rank: int) -> None:
    """Writes parameters, optimizer state (all ranks) and `state` (rank 0)."""
    engine.save(directory)
    if rank == 0:
        (Path(directory) / _STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")


def load_checkpoint(directory: str, *, engine: DeepSpeedEngine, expected: LearnerState) -> LearnerState:
    """Restores the engine and returns the saved state.

    Raises CheckpointError when the folder is incomplete, or was written with other ranks, ZeRO stage or
    precision than `expected` (whose policy_version is ignored): optimizer shards would not fit.
    """
    path = Path(directory) / _STATE_FILE
    try:
        state = LearnerState(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} holds no learner checkpoint: {_STATE_FILE} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name in ("num_ranks", "zero_stage", "dtype"):
        saved, wanted = getattr(state, name), getattr(expected, name)
        if saved != wanted:
            raise CheckpointError(
                f"{directory} was saved with learner.{name}={saved}, but the configuration says {wanted}. "
                f"Fix: resume with learner.{name}={saved}, or start a new run from an export of the weights"
            )
    engine.load(directory)
    return state


def export_hf(
    directory: str,
    *,
    weights: dict[str, Tensor],
    config: PretrainedConfig,
    model_path: str,
    revision: str | None,
    trust_remote_code: bool,
    max_bytes_per_file: int = 5_000_000_000,  # the Hub's convention
) -> None:
    """Writes config, safetensors and tokenizer files that transformers and vLLM load; rank 0 only.

    `weights` has HF names; a tied LM head is left out and config.json says that it is tied.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(folder)
    files = _split_by_size(weights, max_bytes=max_bytes_per_file)
    if len(files) == 1:
        _write(files[0], path=folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(part, path=folder / name)
        weight_map.update(dict.fromkeys(part, name))
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _split_by_size(weights: dict[str, Tensor], *, max_bytes: int) -> list[dict[str, Tensor]]:
    files: list[dict[str, Tensor]] = [{}]
    num_bytes = 0
    for name, tensor in weights.items():
        if files[-1] and num_bytes + tensor.nbytes > max_bytes:
            files.append({})
            num_bytes = 0
        files[-1][name] = tensor
        num_bytes += tensor.nbytes
    return files


def _write(weights: dict[str, Tensor], *, path: Path) -> None:
    # ZeRO keeps parameters as views of one flat buffer; safetensors wants each tensor in its own memory.
    own = {name: tensor.to(torch.device("cpu"), copy=True) for name, tensor in weights.items()}
    save_file(own, path, metadata={"format": "pt"})
