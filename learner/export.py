"""The policy as a folder in Hugging Face format: the folder that it came from, with other weights.

Written by the learner's rank 0 for each checkpoint, from the snapshot that it has published; transformers and vLLM load
it.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from system.weights.digest import checked_buckets
from system.weights.manifest import WeightsManifest
from system.weights.store import Buckets

# Weights in any format: everything else in a model's folder says what the model is.
_WEIGHT_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf", "*.h5",
    "*.msgpack", "*.onnx", "*.ot",
)  # fmt: skip
_TEMPLATE_FOLDER = "additional_chat_templates"


def export_hf(
    directory: str,
    *,
    weights: dict[str, Tensor],
    source: Path,
    max_bytes_per_file: int = 5_000_000_000,  # the Hub's convention
) -> list[Path]:
    """Writes `weights` beside copies of the other files of `source`; rank 0 only. Returns the files.

    The end tokens of generation_config.json, the chat template, the tokenizer, processors and code files come along.
    `weights` has HF names; a tied LM head is left out and config.json says that it is tied.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_description(source, to=folder)
    _set_dtype(folder / "config.json", dtype=next(iter(weights.values())).dtype)
    files = _split_by_size(weights, max_bytes=max_bytes_per_file)
    if len(files) == 1:
        _write(files[0], path=folder / "model.safetensors")
    else:
        _write_parts(files, folder=folder)
    return [path for path in folder.rglob("*") if path.is_file()]


def snapshot_weights(manifest: WeightsManifest, *, fetch: Callable[[Sequence[object]], Buckets]) -> dict[str, Tensor]:
    """The tensors of a published snapshot by HF name, checked against its checksums: views of the store, read-only."""
    buffers = (torch.from_numpy(buffer) for buffer in fetch(manifest.references))
    return {name: tensor for bucket in checked_buckets(buffers, manifest) for name, tensor in bucket}


def description_folder(model_path: str, *, revision: str | None) -> Path:
    """Where the files of a model besides its weights lie; those of a hub model are fetched."""
    if Path(model_path).is_dir():
        return Path(model_path)
    return Path(snapshot_download(model_path, revision=revision, ignore_patterns=list(_WEIGHT_FILES)))


def _copy_description(source: Path, *, to: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in _WEIGHT_FILES):
            shutil.copyfile(path, to / path.name)
    if (source / _TEMPLATE_FOLDER).is_dir():
        shutil.copytree(source / _TEMPLATE_FOLDER, to / _TEMPLATE_FOLDER, dirs_exist_ok=True)


def _set_dtype(path: Path, *, dtype: torch.dtype) -> None:
    """config.json names the precision of the weights: whoever loads them without saying otherwise gets that one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # its former name
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_parts(files: list[dict[str, Tensor]], *, folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(part, path=folder / name)
        weight_map.update(dict.fromkeys(part, name))
    total = sum(tensor.nbytes for part in files for tensor in part.values())
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
