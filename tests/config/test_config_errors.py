"""Bad input: each wrong configuration with the one line that it must end in, fast and without torch or Ray."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from system.config.load import load_config, load_resumed_config
from system.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
CPUS = os.cpu_count()


@dataclass(frozen=True, kw_only=True)
class WrongOverride:
    """Overrides on top of a valid configuration, and the whole message (a regular expression)."""

    overrides: tuple[str, ...]
    message: str


CERTAINTY = "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 1}]"


def wrong(*overrides: str, message: str) -> WrongOverride:
    return WrongOverride(overrides=overrides, message=message)


WRONG_KEYS_AND_TYPES = [
    wrong("run.num_update=3", message=r"run.num_update: given 3, expected a key that exists. "
          r"Fix: did you mean run.num_updates\? Change it on the command line"),
    wrong("trainer.lr=3", message=r"trainer.lr: given 3, expected a key that exists. "
          r"Fix: remove it on the command line; 'credence config' lists all keys"),
    wrong("rollout.learning_rate=1e-4", message=r"rollout.learning_rate: .* did you mean learner.learning_rate\?.*"),
    wrong("learner.adam_betas.first=0.9", message=r"learner.adam_betas.first: given 0.9, expected a key that exists.*"),
    wrong("run=3", message=r"run: given 3, expected a section with keys such as run.name. "
          r"Fix: set the section's keys one by one on the command line, or leave the section out"),
    wrong("batch.prompts_per_step=many", message=r"batch.prompts_per_step: given 'many', expected a whole number. "
          r"Fix: change it on the command line"),
    wrong("batch.prompts_per_step=3.5", message=r"batch.prompts_per_step: given 3.5, expected a whole number.*"),
    wrong("run.num_updates=true", message=r"run.num_updates: given True, expected a whole number.*"),
    wrong("run.num_updates=null", message=r"run.num_updates: given None, expected a whole number.*"),
    wrong("run.name=no", "run.name=false", message=r"run.name: given False, expected text.*"),
    wrong("learner.learning_rate=fast", message=r"learner.learning_rate: given 'fast', expected a number. .*"),
    wrong("learner.learning_rate=.nan", message=r"learner.learning_rate: given nan, expected a number, finite. .*"),
    wrong("run.max_seconds=.inf", message=r"run.max_seconds: given inf, expected a number or null, finite. .*"),
    wrong("learner.backend=mpi", message=r"learner.backend: given 'mpi', expected one of gloo, nccl. .*"),
    wrong("task.name=gsm9k", message=r"task.name: given 'gsm9k', expected one of gsm8k_chains, triplets, gsm8k, "
          r".*package.module:Name. Fix: did you mean gsm8k\? .*"),
    wrong("loss.name=gpso", message=r"loss.name: given 'gpso', expected one of .* Fix: did you mean gspo\? .*"),
    wrong("learner.backend=ncll", message=r"learner.backend: given 'ncll', expected one of gloo, nccl. "
          r"Fix: did you mean nccl\? Change it on the command line"),
    wrong("rollout.enforce_eager=2", message=r"rollout.enforce_eager: given 2, expected true or false. .*"),
    wrong("learner.adam_betas=0.9", message=r"learner.adam_betas: given 0.9, expected a list of 2 numbers. .*"),
    wrong("learner.adam_betas=[0.9]", message=r"learner.adam_betas: given \[0.9\], expected a list of 2 numbers. .*"),
    wrong("run.seed={a: 1}", message=r"run.seed: given \{'a': 1\}, expected a whole number. .*"),
    wrong("run.seed=[1", message=r"run.seed: given '\[1', expected a YAML value \(.*\). Fix: quote the value"),
    wrong("run.seed=", message=r"run.seed: given 'run.seed=', expected a value after '='. Fix: .*run.seed=null.*"),
    wrong("run.seed", message=r"run.seed: given 'run.seed', expected key=value. Fix: e.g. run.seed=1; .*"),
    wrong("=3", message=r"=3: given '=3', expected key=value. .*"),
    wrong("run.seed=${nope.seed}", message=r"run.seed: given \"Interpolation key 'nope.seed' not found\", expected "
          r"an interpolation .* Fix: change it on the command line"),
    wrong("run.seed=${run.seed}", message=r"run.seed: given 'Recursive interpolation detected', expected .*"),
    wrong("run.seed=${task.name}", message=r"run.seed: given .*'gsm8k_chains' of type 'str' could not be converted.*"),
    wrong("run.seed=${run", message=r"run.seed: given .*, expected an interpolation .*"),
]  # fmt: skip

WRONG_RANGES = [
    wrong("run.num_updates=0", message=r"run.num_updates: given 0, expected at least 1. Fix: change .*"),
    wrong("run.seed=-1", message=r"run.seed: given -1, expected from 0 to 2147483647. .*"),
    wrong("run.max_seconds=0", message=r"run.max_seconds: given 0.0, expected above 0. .*"),
    wrong("rollout.temperature=0", message=r"rollout.temperature: given 0.0, expected above 0. .*"),
    wrong("rollout.num_workers=0", message=r"rollout.num_workers: given 0, expected at least 1. .*"),
    wrong("learner.learning_rate=-1e-4", message=r"learner.learning_rate: given -0.0001, expected above 0.*"),
    wrong("learner.zero_stage=4", message=r"learner.zero_stage: given 4, expected from 0 to 3. .*"),
    wrong("learner.warmup_ratio=1.5", message=r"learner.warmup_ratio: given 1.5, expected from 0 to 1. .*"),
    wrong("learner.adam_betas=[0.9,1.0]", message=r"learner.adam_betas: given \[0.9, 1.0\], expected at least 0 .*"),
    wrong("controller.max_staleness=-1", message=r"controller.max_staleness: given -1, expected at least 0. .*"),
    wrong("weight_sync.bucket_mib=0", message=r"weight_sync.bucket_mib: given 0, expected at least 1. .*"),
    wrong(
        "checkpoint.keep_best=1",
        "checkpoint.every_updates=50",
        "evaluation.every_updates=20",
        message=r"checkpoint.keep_best: given '1 with checkpoint.every_updates=50 and evaluation.every_updates=20', "
        r"expected .* multiple .*",
    ),
    wrong("checkpoint.every_updates=0", message=r"checkpoint.every_updates: given 0, expected at least 1. .*"),
    wrong("run.name=a/b", message=r"run.name: given 'a/b', expected 1 to 100 letters, .* it names a folder. .*"),
    wrong("run.name=..", message=r"run.name: given '..', expected 1 to 100 letters, .*"),
    wrong("cluster.address=here", message=r"cluster.address: given 'here', expected local, auto, HOST:PORT .*"),
]  # fmt: skip

CONTRADICTIONS = [
    wrong("batch.completions_per_prompt=1", message=r"batch.completions_per_prompt: given 1, expected at least 2: "
          r"algorithm.name=grpo compares the completions of a prompt. .*"),
    wrong("batch.tokens_per_microbatch=199", message=r"batch.tokens_per_microbatch: given 199, expected at least 200 = "
          r"rollout.max_prompt_tokens \+ rollout.max_completion_tokens, one sequence. .*"),
    wrong("rollout.top_p=0.9", message=r"rollout.top_p: given 0.9, expected 1.0 in training, or .* biased. .*"),
    wrong("rollout.top_k=20", message=r"rollout.top_k: given 20, expected 0 in training, .*"),
    wrong("rollout.gpu_memory_utilization=0.5", message=r"rollout.gpu_memory_utilization: given 0.5, expected "
          r"0.85, as engines with rollout.device=cpu do not read it. Fix: rollout.gpu_memory_utilization=0.85, or .*"),
    wrong("rollout.device=cuda", "rollout.kv_cache_gib=4", message=r"rollout.kv_cache_gib: given 4.0, .* do not .*"),
    wrong("rollout.max_completion_tokens=200", message=r"rollout.max_prompt_tokens \+ rollout.max_completion_tokens: "
          r"given 272, expected at most the 256 positions of .*"),
    wrong("learner.backend=nccl", message=r"learner.backend: given 'nccl', expected gloo with learner.device=cpu. .*"),
    wrong("learner.device=cuda", message=r"learner.backend: given 'gloo', expected nccl with learner.device=cuda. .*"),
    wrong("weight_sync.backend=nccl", message=r"weight_sync.backend: given 'nccl', expected gloo, as rollout.device="
          r"cpu and learner.device=cpu are not all cuda. .*"),
    wrong("learner.zero_stage=0", "learner.offload_optimizer=true",
          message=r"learner.offload_optimizer: given True, expected learner.zero_stage 1, 2 or 3, .*"),
    wrong("learner.offload_optimizer=true", message=r"learner.offload_optimizer: given True, expected false with "
          r"learner.device=cpu, .*"),
    wrong("rollout.dtype=bfloat16", "weight_sync.canary_tolerance_nats=1e-4",
          message=r"weight_sync.canary_tolerance_nats: given 0.0001, expected null \(calibrated\), or at least 0.01 "
          r"when .* bfloat16. .*"),
    wrong("reward.terms=[{scorer:verifier}]",
          message=r"reward.terms\[0\].scorer:verifier: .* Fix: YAML wants a space after the colon: scorer: verifier"),
    wrong("reward.terms=[{scorer: verifier, weight: 0}]",
          message=r"reward.terms: given '0 x verifier', expected at least one weight .*"),
    wrong("scorer.mode=ema", message=r"scorer.mode: given 'ema', expected online, as neither a reward term nor the "
          r"algorithm uses scoring replicas. Fix: scorer.mode=online, or remove it \(set on .*"),
    wrong(CERTAINTY, "scorer.mode=lagged",
          message=r"scorer.lag_versions: given 0, expected at least 1 with scorer.mode=lagged.*"),
    wrong(CERTAINTY, "scorer.lag_versions=2",
          message=r"scorer.lag_versions: given 2, expected .* 0 in every other mode. .*"),
    wrong(CERTAINTY, "scorer.mode=lagged", "scorer.lag_versions=3", "scorer.max_lag_versions=2",
          message=r"scorer.max_lag_versions: given 2, expected at least scorer.lag_versions=3. .*"),
    wrong(CERTAINTY, "scorer.mode=offline", "scorer.max_lag_versions=1",
          message=r"scorer.max_lag_versions: given 1, expected null with scorer.mode=offline, .*"),
    wrong(CERTAINTY, "scorer.tokens_per_pass=199",
          message=r"scorer.tokens_per_pass: given 199, expected at least 200 = .*"),
    wrong(CERTAINTY, "scorer.dtype=bfloat16", "weight_sync.canary_tolerance_nats=1e-4",
          message=r"weight_sync.canary_tolerance_nats: given 0.0001, .* rollout.dtype, scorer.dtype, learner.dtype .*"),
    wrong("reward.timeout_seconds=200", message=r"reward.timeout_seconds: given 200.0, expected less than "
          r"reward.group_timeout_seconds=120. .*"),
    wrong("task.train_path=a.jsonl", message=r"task.train_path: given 'a.jsonl', expected null, as gsm8k_chains is "
          r"embedded. .*"),
    wrong("task.dataset=x/y", message=r"task.dataset: given 'x/y', expected null, as gsm8k_chains is embedded. .*"),
    wrong("task.name=gsm8k", message=r"task.train_path: given None, expected a file with rows of gsm8k.*"),
    wrong("task.name=math", "task.train_path=a.jsonl", message=r"task.test_path: given None, expected a file with .*"),
    wrong("task.name=math", "task.dataset=x/y", "task.test_path=a.jsonl",
          message=r"task.dataset: given 'x/y', expected either a dataset or paths. .*"),
    wrong("task.name=code", "task.dataset=x/y", "reward.terms=[{scorer: verifier}, {scorer: plurality, weight: 0}]",
          message=r"reward.terms: given 'plurality', expected other scorers with task.name=code, as programs .*"),
    wrong("task.name=code", "task.dataset=x/y", "batch.completions_per_prompt=30",
          message=r"reward.group_timeout_seconds: given 120.0, expected more than 30 \* .* = 150, .*"),
    wrong("task.name=code", "task.dataset=x/y", "algorithm.name=barl", "batch.completions_per_prompt=8",
          message=r"algorithm.name: given 'barl', expected grpo with task.name=code, as beliefs are over answers .*"),
    wrong("algorithm.name=barl", CERTAINTY,
          message=r"reward.terms: given '1 x self_certainty', expected weight 0, which only monitors, with .*"),
    wrong("algorithm.name=barl", "reward.terms=[{scorer: verifier, weight: -1}]",
          message=r"reward.terms: given '-1 x verifier', expected a weight above 0 with this algorithm, .*"),
    wrong("task.name=triplets", "task.max_train_steps=null", "task.dataset=x/y",
          message=r"task.dataset: given 'x/y', expected null, as triplets is embedded. .*"),
    wrong("task.max_train_steps=0", message=r"task.max_train_steps: given 0, expected at least 1.*"),
    wrong("task.name=math", "task.train_path=a", "task.test_path=b", "task.max_train_steps=3",
          message=r"task.max_train_steps: given 3, expected null, as the number of steps of a math problem .*"),
    wrong("evaluation.split=validation", "task.validation_size=100", message=r"evaluation.num_problems, "
          r"evaluation.num_problems_final: given 500, expected at most task.validation_size=100 problems .*"),
]  # fmt: skip

NOT_ON_THIS_MACHINE = [
    wrong("run.directory=/proc/self/status/runs", message=r"run.directory: given '/proc/self/status/runs', expected a "
          r"folder that can be made and written to, but /proc/.*/status cannot. .*"),
    wrong("model.path=/nowhere/model", message=r"model.path: given '/nowhere/model', expected a model folder that hold"
          r"s config.json. .*"),
    wrong("model.path=./nowhere", message=r"model.path: given './nowhere', expected a model folder .*"),
    wrong("model.path=builtin:nothing", message=r"model.path: given 'builtin:nothing', expected the name of a shipped "
          r"policy. Fix: shipped policies: .*"),
    wrong("model.path=two words", message=r"model.path: given 'two words', expected an existing folder, a hub id .*"),
    wrong("model.revision=main", message=r"model.revision: given 'main', expected null for a model that is not .*"),
    wrong("task.name=gsm8k", "task.train_path=nowhere.jsonl", "task.test_path=nowhere.jsonl",
          message=r"task.train_path: given 'nowhere.jsonl', expected a file that exists. .*"),
    wrong("task.name=gsm8k", "task.train_path=rows.csv", "task.test_path=rows.csv",
          message=r"task.train_path: given 'rows.csv', expected a file name that ends .*"),
    wrong("rollout.num_workers=1000", message=r"rollout.num_workers, learner.num_ranks, reward.num_workers: given "
          rf"'actors that reserve 500.75 CPUs', expected at most the {CPUS} CPUs of this machine. .*"),
    wrong("learner.device=cuda", "learner.backend=nccl", message=r"learner.num_ranks: given "
          r"'1 GPUs \(1 for learner ranks\)', expected at most the 0 GPUs .*"),
    wrong(CERTAINTY, "scorer.device=cuda", message=r"scorer.num_workers: given "
          r"'1 GPUs \(1 for scoring replicas\)', expected at most the 0 GPUs .*"),
    wrong("tracker.wandb_mode=online", message=r"tracker.wandb_mode: given 'online', expected an API key in .*"),
]  # fmt: skip

TABLE = [*WRONG_KEYS_AND_TYPES, *WRONG_RANGES, *CONTRADICTIONS, *NOT_ON_THIS_MACHINE]


def _check_message(error: ConfigError, expected: str) -> None:
    message = str(error)
    assert "\n" not in message, "an error is one line"
    assert re.fullmatch(expected, message), message
    assert " expected " in message
    assert " Fix: " in message


@pytest.mark.parametrize("case", TABLE, ids=lambda case: " ".join(case.overrides))
def test_a_wrong_configuration_says_what_to_do(
    case: WrongOverride, minimal_overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError) as caught:
        load_config([], [*minimal_overrides, *case.overrides])
    _check_message(caught.value, case.message)


WRONG_FILES = {
    "a list at the top": (b"- run\n- model\n", r".*wrong.yaml: given '- run\\n- model', expected sections with .*"),
    "a number": (b"3\n", r".*wrong.yaml: given '3', expected sections with keys at the top level. .*"),
    "empty": (b"", r".*wrong.yaml: given 'an empty file', expected sections with keys. .*"),
    "comments only": (b"# run:\n", r".*wrong.yaml: given 'an empty file', .*"),
    "an open bracket": (b"run:\n  seed: [1\n", r".*wrong.yaml:2: given 'seed: \[1', expected valid YAML \(.*\). .*"),
    "a tab": (b"run:\n\tseed: 1\n", r".*wrong.yaml:2: given 'seed: 1', expected valid YAML \(.*cannot start .*\).*"),
    "a key twice": (b"run:\n  seed: 1\n  seed: 2\n", r".*wrong.yaml:3: given 'seed: 2', expected valid YAML \(.*dup.*"),
    "a section twice": (b"run: {seed: 1}\nrun: {seed: 2}\n", r".*wrong.yaml:2: .*duplicate key run.*"),
    "a Python object": (b"run: !!python/object:os.system x\n", r".*wrong.yaml:1: .*could not determine a.*"),
    "not UTF-8": (b"run: {name: \xff}\n", r".*wrong.yaml: given 'not UTF-8 text', expected a readable YAML file. .*"),
    "a NUL byte": (b"run: {name: \x00}\n", r".*wrong.yaml.*: given .*, expected .*"),
    "a section without keys": (b"rollout:\n", r"rollout: given None, expected a section with keys such .*wrong.yaml.*"),
    "an unknown key": (b"run: {sed: 1}\n", r"run.sed: given 1, .* did you mean run.seed\? Change it in .*wrong.yaml"),
    "a key that is a number": (b"run: {1: 2}\n", r"run.1: given 2, expected a key that exists. .*"),
    "a broken interpolation": (b"run: {name: '${run'}\n", r".*: given .*, expected an interpolation .*wrong.yaml"),
    "a date": (b"run: {num_updates: 2020-01-01}\n", r"run.num_updates: given '2020-01-01', expected a whole number.*"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_says_where(name: str, minimal_overrides: list[str], tmp_path: Path) -> None:
    content, message = WRONG_FILES[name]
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config([path], minimal_overrides)
    _check_message(caught.value, message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([tmp_path / "nowhere.yaml"])
    _check_message(
        caught.value, r".*nowhere\.yaml: given 'No such file or directory', expected a readable YAML file\. .*"
    )


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([tmp_path])
    _check_message(caught.value, r".*: given 'Is a directory', expected a readable YAML file\. .*")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: parts/nowhere.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load_config([recipe])
    _check_message(caught.value, r".*parts/nowhere\.yaml: given 'No such file or directory', expected a readable .*")


def test_a_base_that_is_no_file_name(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: {run: demo.yaml}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([recipe])
    _check_message(caught.value, r"base in .*recipe\.yaml: given .*, expected a file or a list of files\. .*")


def test_a_contradiction_says_which_file_it_comes_from() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([REPOSITORY / "configs/demo.yaml"], ["task.name=math", "task.dataset=some/rows"])
    _check_message(
        caught.value,
        r"task\.max_train_steps: given 4, expected null, as the number of steps of a math problem is not known\. "
        r"Fix: task\.max_train_steps=null, or remove it \(set in .*configs/demo\.yaml\)",
    )


def test_an_error_names_the_base_that_set_the_key(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "wrong.yaml").write_text("run: {seed: -1}\n")
    recipe = tmp_path / "recipes" / "recipe.yaml"
    recipe.write_text(f"base: [{REPOSITORY / 'configs/demo.yaml'}, ../wrong.yaml]\n")
    with pytest.raises(ConfigError) as caught:
        load_config([recipe])
    _check_message(caught.value, rf"run\.seed: given -1, .* \(set in {tmp_path}/wrong\.yaml\)")


def test_all_missing_keys_are_named_at_once(minimal_overrides: list[str]) -> None:
    given = [text for text in minimal_overrides if not text.startswith(("run.name", "task.name"))]
    with pytest.raises(ConfigError) as caught:
        load_config([], given)
    _check_message(
        caught.value,
        r"run\.name, task\.name: given nothing, expected a value \(there is no default\)\. Fix: .* run\.name=\.\.\. .*",
    )


def test_a_model_folder_with_broken_json(model_description: Path, minimal_overrides: list[str]) -> None:
    (model_description / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config([], minimal_overrides)
    _check_message(caught.value, r"model\.path: given '.*', expected readable JSON in .*")


def test_a_model_that_is_no_causal_lm(model_description: Path, minimal_overrides: list[str]) -> None:
    (model_description / "config.json").write_text('{"architectures": ["BertModel"]}', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config([], minimal_overrides)
    _check_message(caught.value, r"model\.path: given '.*', expected a causal language model in .*BertModel.*")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "readable weights in .*"),
        (b"", "readable weights in .*"),
        (None, r"weights \(\*\.safetensors\) in .*"),
    ],
    ids=["LFS pointer", "empty file", "no file"],
)
def test_a_model_without_whole_weights(
    content: bytes | None, expected: str, model_description: Path, minimal_overrides: list[str]
) -> None:
    weights = model_description / "model.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config([], minimal_overrides)
    _check_message(caught.value, r"model\.path: given '.*', expected " + expected)


def test_a_model_whose_weights_are_cut_off(model_description: Path, minimal_overrides: list[str]) -> None:
    weights = model_description / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError) as caught:
        load_config([], minimal_overrides)
    _check_message(caught.value, r"model\.path: given '.*', expected whole weights, but .* is cut off.*")


def test_resuming_something_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resumed_config(tmp_path)
    _check_message(caught.value, r"--resume: given '.*', expected a run folder with config\.yaml and checkpoints\. .*")


@pytest.mark.parametrize(
    "arguments",
    [
        ["configs/demo.yaml", "run.num_update=3"],
        ["configs/nowhere.yaml"],
        ["configs/demo.yaml", "batch.tokens_per_microbatch=100"],
    ],
    ids=["unknown key", "missing file", "contradiction"],
)
def test_the_command_ends_within_two_seconds_of_computing(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "system", "train", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("credence: ")
    assert done.stderr.count("\n") == 1
    # computing time: the wall clock also counts whatever else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
