"""What all losses share: shapes are checked, and a loss is built from its name and options."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from system.config.losses import make_loss
from system.config.schema import LossConfig
from system.errors import ConfigError
from system.fields import key
from system.losses.base import LossInputs, LossOutputs
from system.losses.cispo import Cispo
from tests.losses.loss_inputs import inputs_of


class Reinforce:
    """A user's own loss without options: -A log pi(t)."""

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        ratio = inputs.log_ratios().exp()
        nothing = torch.zeros_like(ratio, dtype=torch.bool)
        return LossOutputs(
            loss=-inputs.advantages * inputs.logprobs,
            ratio=ratio,
            importance_weight=torch.ones_like(ratio),
            is_clipped=nothing,
            is_truncated=nothing,
        )


class Scaled(Reinforce):
    """The same times a factor."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        factor: float = key("Factor of the loss.", 2.0, above=0)

    def __init__(self, options: Options) -> None:
        self._factor = options.factor

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        outputs = super().__call__(inputs)
        return replace(outputs, loss=self._factor * outputs.loss)


class NoLoss:
    """Cannot be called."""


def test_unequal_shapes_are_refused() -> None:
    inputs = inputs_of([1.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"logprobs \(2,\), .* must have one shape \[M\]"):
        replace(inputs, advantages=torch.zeros(1))
    with pytest.raises(ValueError, match=r"loss \(1,\), .* must have one shape \[M\]"):
        replace(Reinforce()(inputs), loss=torch.zeros(1))


def test_a_loss_is_built_from_its_name_and_options() -> None:
    loss = make_loss(LossConfig(name="cispo", options={"clip_high": 1}))
    assert isinstance(loss, Cispo)
    assert loss(inputs_of([4.0], [1.0])).importance_weight.tolist() == pytest.approx([2.0])


def test_a_user_s_own_loss_is_built_from_its_import_path() -> None:
    inputs = inputs_of([1.0], [3.0])
    assert make_loss(LossConfig(name=f"{__name__}:Reinforce"))(inputs).loss.tolist() == [3.0]
    assert make_loss(LossConfig(name=f"{__name__}:Scaled"))(inputs).loss.tolist() == [6.0]
    assert make_loss(LossConfig(name=f"{__name__}:Scaled", options={"factor": 0.5}))(inputs).loss.tolist() == [1.5]


def test_the_documented_loss_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_losses.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    loss = make_loss(LossConfig(name="my_losses:Reinforce"))
    assert loss(inputs_of([1.0], [3.0])).loss.tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Scaled", {"factor": 0}, r"loss.options.factor: given 0.0, expected above 0"),
        ("Reinforce", {"factor": 2}, r"loss.options.factor: given 2, expected no options"),
        ("Missing", {}, r"loss.name: given .*, expected an import path package.module:Name \(AttributeError: .*"),
        ("NoLoss", {}, r"loss.name: given .*, expected a class with the methods __call__"),
    ],
)
def test_a_wrong_loss_is_one_line(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_loss(LossConfig(name=f"{__name__}:{name}", options=options))
