"""The synthetic task of the BARL paper: prompts, payments, and its untrained policy."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from system.config.machine import model_folder
from system.data.tasks.triplets import TripletsTask
from system.data.triplet_policy import write_policy
from system.interfaces import StepwiseTask


def test_two_prompts_are_trained_on_and_the_third_is_held_out() -> None:
    task = TripletsTask()
    assert [(problem.question, problem.reference_answer) for problem in task.load("train")] == [
        ("0", "000"),
        ("1", "111"),
    ]
    assert [problem.question for problem in task.load("test")] == ["2"]
    assert isinstance(task, StepwiseTask)


def test_hypothesis_pays_where_it_ends_and_windows_overlap() -> None:
    payments = TripletsTask().payments("0000122", answer="000")
    assert payments.tolist() == [False, False, True, True, False, False, False]
    assert not TripletsTask().payments("22", answer="222").any()
    assert TripletsTask().payments("", answer="222").tolist() == []


def test_each_character_is_a_step_and_the_whole_response_is_the_answer() -> None:
    assert TripletsTask().cut_steps("012") == [1, 2, 3]
    assert TripletsTask().extract_answer("0122") == "0122"
    assert TripletsTask().extract_answer("") is None


def test_shipped_policy_is_what_the_command_writes(tmp_path: Path) -> None:
    write_policy(tmp_path)
    shipped = model_folder("builtin:triplets_105k")
    assert shipped is not None
    assert (tmp_path / "tokenizer.json").read_text() == (shipped / "tokenizer.json").read_text()
    written, kept = (load_file(folder / "model.safetensors") for folder in (tmp_path, shipped))
    assert written.keys() == kept.keys()
    for name, tensor in written.items():
        # processors draw normal numbers by different instructions
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=1e-6)
