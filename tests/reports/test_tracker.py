"""One line per update, cut at the checkpoint on resume; W&B offline for real, and never fatal."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from system.errors import ConfigError
from system.metrics import MetricTable
from system.reports.metrics import SYSTEM_METRICS
from system.reports.recorder import read_json_lines
from system.reports.tracker import INIT_TIMEOUT_SECONDS, CompletionSample, Tracker, WandbMode, resolve_wandb_mode

SAMPLE = CompletionSample(
    group_id=1,
    index=0,
    prompt="1+1:",
    completion="1+1=2",
    reference_answer="2",
    rewards={"verifier": 1.0, "code": None},
    num_tokens=5,
    finish_reason="stop",
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def open_tracker(
    folder: Path,
    *,
    mode: WandbMode = "disabled",
    resume: int | None = None,
    init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
) -> Tracker:
    return Tracker(
        folder,
        table=MetricTable(SYSTEM_METRICS),
        run_name="test",
        project="credence-tests",
        entity=None,
        wandb_mode=mode,
        config={"seed": 1},
        resume_policy_version=resume,
        init_timeout_seconds=init_timeout_seconds,
    )


def test_line_keeps_what_depends_on_the_clock_apart(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.log({"time/train_seconds": 1.5, "reward/mean": 0.25, "completion/length_mean_tokens": 30}, policy_version=1)
    tracker.log({"reward/std": float("nan")}, policy_version=2)
    tracker.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"policy_version": 1, "metrics": {"completion/length_mean_tokens": 30.0, "progress/policy_version": 1.0, '
        '"reward/mean": 0.25}, "timing": {"time/train_seconds": 1.5}}',
        '{"policy_version": 2, "metrics": {"progress/policy_version": 2.0, "reward/std": null}, "timing": {}}',
    ]


def test_line_and_wandb_summary_say_what_the_update_waited_for(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, mode="offline")
    tracker.log({"reward/mean": 0.5}, policy_version=1, bottleneck="learner waited 41 % for scoring")
    tracker.close()
    (record,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert record["bottleneck"] == "learner waited 41 % for scoring"
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20.0  # its service writes it on
    while b"learner waited 41 % for scoring" not in file.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert tracker.num_failures == 0


def test_a_tracker_that_goes_back_cuts_the_lines_that_will_come_again(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    for version in (0, 1, 2, 3):
        tracker.log({"reward/mean": float(version)}, policy_version=version)
        tracker.log_completions([SAMPLE], policy_version=version)
    tracker.go_back(1)
    tracker.log({"reward/mean": 9.0}, policy_version=2)
    assert [line["policy_version"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert [line["policy_version"] for line in read_json_lines(tmp_path / "completions.jsonl")] == [0, 1]
    tracker.go_back(None)
    assert read_json_lines(tmp_path / "metrics.jsonl") == []
    tracker.close()


def test_misspelled_metric_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    with pytest.raises(KeyError, match="reward/meen"):
        tracker.log({"reward/meen": 1.0}, policy_version=1)
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_resume_cuts_later_lines_and_keeps_the_wandb_run(tmp_path: Path) -> None:
    first = open_tracker(tmp_path, mode="offline")
    for version in range(4):
        first.log({"reward/mean": version / 10}, policy_version=version)
        first.log_completions([SAMPLE], policy_version=version)
    first.close()
    before = json.loads((tmp_path / "wandb.json").read_text())
    second = open_tracker(tmp_path, mode="offline", resume=2)
    second.log({"reward/mean": 0.9}, policy_version=3)
    second.close()
    versions = [record["policy_version"] for record in read_json_lines(tmp_path / "metrics.jsonl")]
    assert versions == [0, 1, 2, 3]
    assert [record["policy_version"] for record in read_json_lines(tmp_path / "completions.jsonl")] == [0, 1, 2]
    after = json.loads((tmp_path / "wandb.json").read_text())
    assert after["id"] == before["id"]
    assert (before["next_step"], after["next_step"]) == (8, 9)
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{before['id']}"))) >= 1
    assert second.num_failures == 0


def test_offline_run_is_quiet_and_closes_fast(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = open_tracker(tmp_path, mode="offline")
    tracker.log({"reward/mean": 0.5}, policy_version=1)
    tracker.log_completions([SAMPLE], policy_version=1)
    start = time.monotonic()
    tracker.close()
    assert time.monotonic() - start < 5
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_images_are_copied_into_the_wandb_run(tmp_path: Path) -> None:
    image = tmp_path / "beliefs.png"
    imsave(image, np.linspace(0.0, 1.0, 64).reshape(8, 8))
    tracker = open_tracker(tmp_path, mode="offline")
    tracker.log_image("belief/posteriors", path=image, policy_version=3)
    tracker.close()
    copies = list((tmp_path / "wandb").glob("offline-run-*/files/media/images/belief/posteriors_*.png"))
    assert [copy.read_bytes() for copy in copies] == [image.read_bytes()]
    assert tracker.num_failures == 0


LOSES_ITS_SERVICE = """
import logging, os, pathlib, signal, subprocess, sys, time
from system.metrics import MetricTable
from system.reports.metrics import SYSTEM_METRICS
from system.reports.tracker import Tracker

logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
tracker = Tracker(
    pathlib.Path(sys.argv[1]), table=MetricTable(SYSTEM_METRICS), run_name="test", project="credence-tests",
    entity=None, wandb_mode="offline", config={},
)
listing = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
services = [line for line in listing.splitlines() if "wandb-core" in line and line.endswith(f"--pid {os.getpid()}")]
assert len(services) == 1, listing
os.kill(int(services[0].split()[0]), signal.SIGKILL)
time.sleep(0.5)
for version in range(3):
    tracker.log({"reward/mean": 0.5}, policy_version=version)
tracker.close()
print(f"num_failures={tracker.num_failures}")
"""


def test_dead_wandb_service_is_logged_once_and_counted(tmp_path: Path) -> None:
    # In a process and with a service of its own: a process that lost its service cannot start another.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    finished = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_SERVICE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "num_failures=4" in finished.stdout
    assert finished.stdout.count("the run goes on") == 1
    records = read_json_lines(tmp_path / "metrics.jsonl")
    assert [record["policy_version"] for record in records] == [0, 1, 2]
    assert records[-1]["timing"] == {"tracker/num_failures": 2.0}


def test_no_route_to_the_server_falls_back_to_offline_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        tracker = open_tracker(tmp_path, mode="auto", init_timeout_seconds=2.0)
    tracker.log({"reward/mean": 0.5}, policy_version=1)
    tracker.close()
    (record,) = (record for record in caplog.records if record.name == "system.reports.tracker")
    assert re.fullmatch(
        r"W&B failed to start online \(.+\); the run goes on, metrics\.jsonl has .*", record.getMessage()
    )
    assert tracker.num_failures == 1
    assert tracker.wandb_url is None
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 1


def test_auto_mode_follows_key_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert resolve_wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve_wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_wandb_mode("auto") == "offline"


def test_online_without_a_key_is_refused_instead_of_prompting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracker\.wandb_mode: given 'online', expected an API key"):
        open_tracker(tmp_path, mode="online")
