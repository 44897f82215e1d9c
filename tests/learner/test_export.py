"""An export against the folder that it came from."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM

from learner.export import export_hf, snapshot_weights
from system.numerics.policy_model import load_policy_model, persistent_buffers
from tests.learner.learner_ranks import write_model
from tests.weights.memory_store import MemoryStore

CODE = "# code of the model\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with two end tokens, a chat template, a processor and code of its own."""
    folder = Path(write_model(tmp_path / "model", tied=False))
    GenerationConfig(eos_token_id=[7, 11], pad_token_id=3).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "modeling_own.py").write_text(CODE)
    return folder


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: parameter.detach() + 0.01 for name, parameter in model.named_parameters()}


def test_an_export_in_several_files_loads_unchanged(source: Path, tmp_path: Path) -> None:
    weights = trained_weights(source)
    export = tmp_path / "export"
    export_hf(str(export), weights=weights, source=source, max_bytes_per_file=20_000)
    assert len(list(export.glob("model-*.safetensors"))) > 2
    loaded, loading = Qwen2ForCausalLM.from_pretrained(export, output_loading_info=True)
    assert not any(loading.values()), loading
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_an_export_is_the_folder_that_it_came_from_with_other_weights(source: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    weights = {name: weight.bfloat16() for name, weight in trained_weights(source).items()}
    written = export_hf(str(export), weights=weights, source=source)
    assert {path.name for path in export.iterdir()} == {path.name for path in source.iterdir()}
    assert set(written) == set(export.iterdir())
    for name in ("generation_config.json", "chat_template.jinja", "preprocessor_config.json", "modeling_own.py"):
        assert (export / name).read_bytes() == (source / name).read_bytes(), name
    assert GenerationConfig.from_pretrained(export).eos_token_id == [7, 11]
    assert AutoTokenizer.from_pretrained(export).chat_template == "{{ messages[0].content }}"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, export))
    assert (before.pop("dtype"), after.pop("dtype")) == ("float32", "bfloat16")
    assert before == after


def test_an_export_of_a_published_snapshot_has_the_weights_that_were_published(source: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    weights = trained_weights(source)
    manifest = store.publish(weights, policy_version=3)
    for weight in weights.values():
        weight += 1.0  # training goes on before the export is written
    exported = snapshot_weights(manifest, fetch=store.fetch)
    assert exported.keys() == weights.keys()
    for name, weight in exported.items():
        assert torch.allclose(weight + 1.0, weights[name]), name


def test_persistent_buffers_belong_to_an_export_and_rotary_frequencies_do_not(source: Path) -> None:
    model = load_policy_model(
        str(source), revision=None, trust_remote_code=False, dtype=torch.float32, device=torch.device("cpu")
    )
    assert persistent_buffers(model) == {}
    model.causal_lm.base_model.register_buffer("correction", torch.ones(3))
    assert list(persistent_buffers(model)) == ["model.correction"]
