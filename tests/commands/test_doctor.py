"""What the arguments of the doctor mean, what a configuration needs, and the two forms of its answer."""

import json
import socket
from pathlib import Path

import pytest

from system import cli
from system.commands.doctor import needs_of, read_request, running_cluster, to_json, to_text
from system.commands.plan import checkpoint_bytes
from system.config.load import load_config
from system.config.schema import LearnerConfig
from system.errors import ConfigError
from system.runtime.doctor.verdicts import fail, ok, warn

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")


def test_an_address_that_is_given_counts_before_that_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    inputs = [DEMO, "cluster.address=10.0.0.1:6379"]
    assert read_request(inputs, address="10.0.0.2:6379").address == "10.0.0.2:6379"
    assert read_request(inputs, address=None).address == "10.0.0.1:6379"
    assert read_request([DEMO], address=None).address == "10.0.0.9:6379"
    assert read_request([DEMO, "cluster.address=local"], address=None).address is None
    assert read_request([], address="local").address is None


def test_a_run_folder_brings_its_configuration(tmp_path: Path) -> None:
    assert read_request([str(tmp_path)], address="local").config is None
    (tmp_path / "config.yaml").write_text(Path(DEMO).read_text())
    request = read_request([str(tmp_path)], address="local")
    assert request.config is not None
    assert request.folder == tmp_path
    assert read_request([DEMO, f"run.directory={tmp_path}/runs"], address="local").folder == tmp_path / "runs"


def test_overrides_need_a_file() -> None:
    with pytest.raises(ConfigError, match="at least one YAML file before the overrides"):
        read_request(["run.seed=1"], address="local")


def test_a_cluster_that_no_longer_answers_is_none(tmp_path: Path) -> None:
    file = tmp_path / "ray_current_cluster"
    assert running_cluster(file) is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        file.write_text(address)
        assert running_cluster(file) == address
    assert running_cluster(file) is None


def test_an_address_at_which_nobody_answers_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert cli.main(["doctor", "--address", f"127.0.0.1:{port}"]) == 2
    assert f"--address: given '127.0.0.1:{port}', expected HOST:PORT of a Ray cluster" in capsys.readouterr().err


def test_a_checkpoint_is_sixteen_bytes_a_parameter_in_bfloat16() -> None:
    learner = LearnerConfig(learning_rate=1e-3, dtype="bfloat16")
    # two weights of 2, master weights and two moments of 4 each; a 7.6 B model has 122 GB
    assert checkpoint_bytes(learner, num_parameters=7_600_000_000) == 16 * 7_600_000_000


def test_needs_follow_from_the_model_and_its_scorers() -> None:
    terms = "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]"
    config = load_config([DEMO], [terms, "scorer.mode=lagged", "scorer.lag_versions=3", "checkpoint.keep=4"])
    needs = needs_of(config, folder=None)
    assert (needs.num_snapshots, needs.num_checkpoints) == (5, 5)
    assert needs.snapshot_bytes is not None
    # float32: 20 bytes a parameter against 4, and the three versions that the scorer stays behind
    assert needs.checkpoint_bytes == (5 + 3) * needs.snapshot_bytes
    hub = load_config([DEMO], ["model.path=Qwen/Qwen2.5-1.5B"], check_devices=False)
    assert needs_of(hub, folder=None).snapshot_bytes is None
    assert "Qwen/Qwen2.5-1.5B" in needs_of(hub, folder=None).unknown_because


def test_the_table_says_what_was_expected_and_the_fix() -> None:
    checks = [
        ok("ports", "2 connections work"),
        warn("open files", "10.0.0.2: at most 20,000", expected="65,536 or more", fix="ulimit"),
        fail("disk", "1 GiB free", expected="3 GiB", fix="another run.directory"),
    ]
    assert to_text(checks).splitlines() == [
        "ok    ports           2 connections work",
        "warn  open files      10.0.0.2: at most 20,000",
        "                      expected: 65,536 or more",
        "                      fix: ulimit",
        "FAIL  disk            1 GiB free",
        "                      expected: 3 GiB",
        "                      fix: another run.directory",
        "1 failed, 1 warnings",
    ]
    text = to_json(checks, where="here")
    assert "\n" not in text
    assert json.loads(text)["is_well"] is False
    assert json.loads(text)["checks"][2]["name"] == "disk"
    assert json.loads(to_json(checks[:2], where="here"))["is_well"] is True
