"""Exports that need more than one file of weights."""

from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from learner.checkpoint import export_hf
from tests.learner.learner_ranks import write_model


def test_an_export_in_several_files_loads_unchanged(tmp_path: Path) -> None:
    model_path = write_model(tmp_path / "model", tied=False)
    model = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export_hf(
        str(tmp_path / "export"),
        weights=weights,
        config=model.config,
        model_path=model_path,
        revision=None,
        trust_remote_code=False,
        max_bytes_per_file=20_000,
    )
    assert len(list((tmp_path / "export").glob("model-*.safetensors"))) > 2
    loaded, loading = Qwen2ForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(loading.values()), loading
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights[name]), name
