"""What is wrong with a named algorithm or scorer, or with its options, is said in one line."""

import re
from pathlib import Path

import pytest

from system.config.load import load_config
from system.errors import ConfigError
from tests.config.test_config_errors import WrongOverride, wrong

CONFIGS = Path(__file__).parents[2] / "configs"
TABLE = [
    wrong("reward.terms=[{scorer: length}]",
          message=r"reward.terms: given 'length', expected a term of the verifier.*"),
    wrong("reward.terms=[{scorer: verifyer}]", message=r"reward.terms\[0\].scorer: given 'verifyer', expected one of "
          r"verifier, plurality, .*Fix: did you mean verifier\?"),
    wrong("reward.terms=[{scorer: verifier, wieght: 2}]",
          message=r"reward.terms\[0\].wieght: given 2, expected one of scorer, weight, options.*mean .*weight\?"),
    wrong("reward.terms=[{scorer: verifier, weight: heavy}]",
          message=r"reward.terms\[0\].weight: given 'heavy', expected a number. Fix: .*"),
    wrong("reward.terms=[{scorer: verifier}, {scorer: verifier}]",
          message=r"reward.terms\[1\].scorer: given 'verifier', expected a scorer that no other term names.*"),
    wrong("reward.terms=[{scorer: verifier, options: {strict: true}}]",
          message=r"reward.terms\[0\].options.strict: given True, expected no options. Fix: remove it"),
    wrong("reward.terms=[{scorer: verifier}, {scorer: overlong, options: {max_tokens: 100}}]",
          message=r"reward.terms\[1\].options.buffer_tokens: given None, expected a whole number.*"),
    wrong("reward.terms=[{scorer: verifier}, {scorer: overlong, options: {max_tokens: 0, buffer_tokens: 1}}]",
          message=r"reward.terms\[1\].options.max_tokens: given 0, expected at least 1.*"),
    wrong("reward.terms=[{scorer: verifier}, {scorer: 'no.such:Thing'}]",
          message=r"reward.terms\[1\].scorer: given 'no.such:Thing', expected an import path .*ModuleNotFoundError.*"),
    wrong("reward.terms=[{scorer: verifier}, {scorer: 'pathlib:Path'}]",
          message=r"reward.terms\[1\].scorer: given 'pathlib:Path', expected a class with the methods score.*"),
    wrong("reward.terms=verifier", message=r"reward.terms: given 'verifier', expected a list of mappings .*"),
    wrong("algorithm.options.beta=2",
          message=r"algorithm.options.beta: given 2, expected one of baseline, deviation, .*Fix: remove it .*"),
    wrong("algorithm.name=barl", "algorithm.options.candidate=2",
          message=r"algorithm.options.candidate: given 2, expected one of .* mean algorithm.options.candidates\?.*"),
    wrong("algorithm.name=barl", "algorithm.options.beta=-1",
          message=r"algorithm.options.beta: given -1.0, expected at least 0. .*"),
    wrong("algorithm.name=barl", "algorithm.options.reduction=max",
          message=r"algorithm.options.reduction: given 'max', expected one of sum, mean. .*"),
    wrong("algorithm.name=progress", "algorithm.options.candidates=3",
          message=r"algorithm.options.candidates: given 3, expected one of baseline, reduction, .*"),
    wrong("algorithm.name=barrl", message=r"algorithm.name: given 'barrl', expected one of barl, barl_given, grpo, "
          r"markovian, .* or an import path .*Fix: did you mean barl\?.*"),
    wrong("algorithm.name=no.such:Thing", message=r"algorithm.name: given 'no.such:Thing', expected an import path .*"),
    wrong("algorithm.name=pathlib:Path",
          message=r"algorithm.name: given 'pathlib:Path', expected a class with the methods credit, .*"),
    wrong("algorithm.options=3", message=r"algorithm.options: given 3, expected a mapping. .*"),
    wrong("reward.normalise_terms=true", "algorithm.options.deviation=group",
          message=r"algorithm.options.deviation: given 'group', expected batch, none or null with .*"),
    wrong("task.name=triplets", "task.max_train_steps=null", "algorithm.name=barl_given",
          message=r"algorithm.options.hypotheses: given None, expected a list of values. .*"),
    wrong("task.name=triplets", "task.max_train_steps=null", "algorithm.name=barl_given",
          "algorithm.options.hypotheses=[000]", message=r"algorithm.options.hypotheses: given \[0\], expected .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", TABLE, ids=lambda case: " ".join(case.overrides))
def test_a_wrong_name_or_option_says_what_to_do(case: WrongOverride, minimal_overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [*minimal_overrides, *case.overrides])
    assert re.fullmatch(case.message, str(caught.value)), str(caught.value)


def test_options_are_merged_until_another_name_comes(minimal_overrides: list[str]) -> None:
    barl = CONFIGS / "algorithm" / "barl.yaml"
    options = load_config([barl], [*minimal_overrides, "algorithm.options.beta=2.0"]).algorithm.options
    assert options == {"beta": 2.0, "candidates": 5}
    assert load_config([barl], [*minimal_overrides, "algorithm.name=rloo"]).algorithm.options == {}
    given = load_config([barl], ["algorithm.options.baseline=batch", "algorithm.name=progress", *minimal_overrides])
    assert given.algorithm.options == {"baseline": "batch"}
