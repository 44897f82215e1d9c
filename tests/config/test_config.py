"""Loading: merge order, types, round trips, shipped files, and that it stays free of torch and Ray."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from system.config.load import (
    RESUMABLE_KEYS,
    config_from_dict,
    dump_yaml,
    flatten,
    load_config,
    load_resumed_config,
    split_resume,
    to_dict,
)
from system.config.machine import joins_cluster, num_visible_gpus, run_directory
from system.config.reference import ConfigKey, config_keys, describe_type, nearest_key, reference_text
from system.config.run_schema import ClusterConfig
from system.config.schema import Config, RunConfig
from system.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"


def _shipped() -> list[list[Path]]:
    """Every recipe alone, and every overlay of configs/algorithm over the demo; configs/base holds parts of recipes."""
    recipes = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in ("algorithm", "base")]
    overlays = sorted((CONFIGS / "algorithm").glob("*.yaml"))
    return [[path] for path in recipes] + [[CONFIGS / "demo.yaml", path] for path in overlays]


@pytest.mark.parametrize("paths", _shipped(), ids=lambda paths: paths[-1].stem)
def test_every_shipped_file_loads(paths: list[Path]) -> None:
    config = load_config(paths, check_devices=False)
    assert config_from_dict(to_dict(config)) == config


def test_the_demo_loads_with_every_check_on_two_cores() -> None:
    config = load_config([CONFIGS / "demo.yaml"])
    assert config.learner.num_ranks == 2
    assert config.run.max_seconds is not None
    assert config.run.max_seconds <= 720


def test_the_demo_holds_two_rollout_workers_on_two_cores() -> None:
    config = load_config([CONFIGS / "demo.yaml"], ["rollout.num_workers=2"])
    reserved = (
        2 * config.rollout.cpus_per_worker
        + config.learner.num_ranks * config.learner.cpus_per_rank
        + config.reward.num_workers * config.reward.cpus_per_worker
    )
    assert reserved <= 2


def test_later_files_and_overrides_win(tmp_path: Path, minimal_overrides: list[str]) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("run: {seed: 1, num_updates: 5}\nrollout: {temperature: 0.5}\n")
    second.write_text("run: {seed: 2}\n")
    config = load_config([first, second], [*minimal_overrides, "run.num_updates=7", "run.num_updates=8"])
    assert (config.run.seed, config.run.num_updates, config.rollout.temperature) == (2, 8, 0.5)


def test_a_file_lies_over_its_bases_which_are_relative_to_it(tmp_path: Path, minimal_overrides: list[str]) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "lengths.yaml").write_text("run: {seed: 1, num_updates: 5}\nrollout: {temperature: 0.5}\n")
    (tmp_path / "parts" / "rates.yaml").write_text("base: lengths.yaml\nrun: {seed: 2}\nreward: {num_workers: 2}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: [parts/lengths.yaml, parts/rates.yaml]\nreward: {num_workers: 3}\n")
    given = [text for text in minimal_overrides if not text.startswith(("run.num_updates", "run.seed"))]
    config = load_config([recipe], given)
    assert (config.run.seed, config.run.num_updates, config.rollout.temperature) == (2, 5, 0.5)
    assert config.reward.num_workers == 3


def test_a_base_that_was_read_already_is_not_laid_over_what_follows_it(
    tmp_path: Path, minimal_overrides: list[str]
) -> None:
    first, overlay, recipe = (tmp_path / name for name in ("first.yaml", "overlay.yaml", "recipe.yaml"))
    first.write_text("base: recipe.yaml\nrollout: {temperature: 0.5}\n")  # the two name each other
    overlay.write_text("rollout: {temperature: 0.7}\n")
    recipe.write_text("base: first.yaml\nreward: {num_workers: 3}\n")
    config = load_config([first, overlay, recipe], minimal_overrides)
    assert (config.rollout.temperature, config.reward.num_workers) == (0.7, 3)


def test_values_have_the_types_of_the_schema(make_config: Callable[..., Config]) -> None:
    config = make_config(
        "learner.learning_rate=1e-4", "run.max_seconds=60", "learner.adam_betas=[0.8,0.9]", "run.name=12"
    )
    assert config.learner.learning_rate == 1e-4
    assert isinstance(config.run.max_seconds, float)
    assert config.learner.adam_betas == (0.8, 0.9)
    assert config.run.name == "12"


def test_null_switches_a_feature_off(make_config: Callable[..., Config]) -> None:
    assert make_config("task.max_train_steps=null").task.max_train_steps is None


def test_options_are_merged_one_by_one_until_another_name_is_chosen(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config("loss.options.clip_high=0.28", "loss.options.dual_clip=3")
    assert config.loss.options == {"clip_high": 0.28, "dual_clip": 3}
    assert load_config_again(config, tmp_path).loss == config.loss
    # wherever the name stands on the command line
    config = make_config("loss.options.clip_high=0.28", "loss.name=cispo")
    assert (config.loss.name, config.loss.options) == ("cispo", {"clip_high": 0.28})
    saved = tmp_path / "dual.yaml"
    saved.write_text("loss: {options: {dual_clip: 3}}\n")
    overlay = tmp_path / "gspo.yaml"
    overlay.write_text("loss: {options: {clip_low: 0.01}, name: gspo}\n")
    config = load_config([CONFIGS / "demo.yaml", saved, overlay])
    assert (config.loss.name, config.loss.options) == ("gspo", {"clip_low": 0.01})


def load_config_again(config: Config, folder: Path) -> Config:
    path = folder / "resolved.yaml"
    path.write_text(dump_yaml(config))
    return load_config([path], check_devices=False)


def test_interpolations_are_resolved(make_config: Callable[..., Config]) -> None:
    config = make_config("run.seed=3", "batch.prompts_per_step=${run.seed}")
    assert config.batch.prompts_per_step == 3
    assert "${" not in dump_yaml(config)


def test_a_loaded_configuration_cannot_change(make_config: Callable[..., Config]) -> None:
    with pytest.raises(FrozenInstanceError):
        make_config().run.seed = 1  # type: ignore[misc]


def test_dumped_yaml_loads_to_the_same_configuration(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config("run.max_seconds=60", "learner.adam_betas=[0.8,0.9]")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_config([path]) == config


def _write_run(tmp_path: Path, config: Config) -> Path:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    return run_dir


def test_a_resumed_run_may_run_longer_with_more_workers(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config()
    run_dir = _write_run(tmp_path, config)
    assert load_resumed_config(run_dir) == config
    resumed = load_resumed_config(run_dir, [], ["run.num_updates=20", "rollout.num_workers=2", "tracker.project=other"])
    assert (resumed.run.num_updates, resumed.rollout.num_workers) == (20, 2)


def test_a_resumed_run_may_have_another_learner_layout(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump_yaml(make_config()))
    resumed = load_resumed_config(run_dir, [], ["learner.num_ranks=2", "learner.zero_stage=3"])
    assert (resumed.learner.num_ranks, resumed.learner.zero_stage) == (2, 3)


def test_resume_names_a_run_and_maybe_an_update(tmp_path: Path) -> None:
    assert split_resume("runs/demo") == ("runs/demo", None)
    assert split_resume("runs/demo@120") == ("runs/demo", 120)
    assert split_resume("me@home/demo") == ("me@home/demo", None)
    (tmp_path / "demo@3").mkdir()
    assert split_resume(f"{tmp_path}/demo@3") == (f"{tmp_path}/demo@3", None)


def test_a_resumed_run_may_not_train_otherwise(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    run_dir = _write_run(tmp_path, make_config())
    with pytest.raises(ConfigError, match=r"^learner\.learning_rate: given 0\.1, expected 5e-05, as in .* resumed run"):
        load_resumed_config(run_dir, [], ["learner.learning_rate=0.1"])


def test_resumable_keys_exist() -> None:
    for safe in RESUMABLE_KEYS:
        assert any(key == safe or (safe.endswith(".") and key.startswith(safe)) for key in config_keys()), safe


def test_every_number_of_the_schema_has_bounds() -> None:
    numeric = {key.name: key.bounds for key in config_keys().values() if "number" in describe_type(key.annotation)}
    assert {name for name, bounds in numeric.items() if not str(bounds)} == set()


@pytest.mark.parametrize(
    "key", [key for key in config_keys().values() if not key.is_required], ids=lambda key: key.name
)
def test_every_default_is_inside_its_bounds(key: ConfigKey) -> None:
    numbers = key.default if isinstance(key.default, tuple) else [key.default]
    assert all(key.bounds.hold(number) for number in numbers if isinstance(number, int | float))


def test_the_reference_names_every_key_with_type_and_default(make_config: Callable[..., Config]) -> None:
    text = reference_text()
    assert all(key in text for key in flatten(make_config()))
    assert "run.num_updates  (a whole number; at least 1; required)" in text
    assert "loss.constant_length  (a whole number or null; at least 1; default null)" in text
    assert "learner.backend  (one of gloo, nccl; default gloo)" in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("run.num_update", "run.num_updates"),
        ("rollout.learning_rate", "learner.learning_rate"),
        ("bacth.prompts_per_step", "batch.prompts_per_step"),
        ("training.completion_per_prompt", "batch.completions_per_prompt"),
        ("rewards.num_workers", "reward.num_workers"),
        ("rollout.temprature", "rollout.temperature"),
        ("loss.kl_coef", "loss.kl_coefficient"),
        ("xyzzy.plugh", None),
        ("reward.function", None),
        ("trainer.lr", None),
        ("rollout.num", "rollout.num_workers"),
    ],
)
def test_unknown_keys_suggest_what_was_meant(given: str, meant: str | None) -> None:
    assert nearest_key(given) == meant


def test_the_folder_of_runs_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_directory(RunConfig(name="x", num_updates=1, directory="~/runs")) == tmp_path.resolve() / "runs"


@pytest.mark.parametrize(("visible", "number"), [("", 0), ("-1", 0), ("0,1", 2), ("3", 1)])
def test_visible_gpus_follow_the_environment(visible: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_visible_gpus() == number


def test_loading_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; import system.cli, system.commands.plan; from system.config.load import load_config;"
        "load_config(['configs/experiment/math_qwen2.5_3b_grpo.yaml'], ['cluster.address=head:6379']);"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'wandb'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("address", "ray_address", "joins"),
    [("auto", "", False), ("auto", "10.0.0.1:6379", True), ("local", "10.0.0.1:6379", False), ("head:6379", "", True)],
)
def test_auto_joins_the_cluster_of_a_job_and_starts_ray_elsewhere(
    address: str, ray_address: str, joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)

    assert joins_cluster(ClusterConfig(address=address)) is joins
