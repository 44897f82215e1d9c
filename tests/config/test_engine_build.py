"""The build of vLLM that is installed against the device of the rollout workers."""

import pytest

from system.config.load import load_config
from system.config.machine import engine_build
from system.errors import ConfigError


def test_an_engine_of_the_other_build_is_refused_before_anything_starts(
    minimal_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = engine_build()
    assert build is not None
    other = {"cpu": "cuda", "cuda": "cpu"}[build]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    expected = rf"rollout\.device: given '{other}', expected {build}, as the vLLM that is installed is its .*"
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config([], [*minimal_overrides, f"rollout.device={other}"])
    assert "\n" not in str(caught.value)
