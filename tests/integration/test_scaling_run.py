"""A run gets a second rollout worker and gives it back, by command. The long form: benchmarks/scaling.py."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from credence_process import TIMEOUT_SECONDS, command, metric_lines, require_success, run, started

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
# it ends when the test has seen enough, however quick the machine is
ENDLESS: dict[str, Any] = {
    "run__num_updates": 100_000,
    "evaluation__every_updates": "null",
    "checkpoint__every_updates": "null",
}


def test_one_two_one_rollout_workers_by_command_without_a_lost_group(tmp_path: Path) -> None:
    folder, log = tmp_path / "small", tmp_path / "log"
    with started(command(tmp_path, rollout__cpus_per_worker=0.25, **ENDLESS), log=log) as process:
        wait_for_line(folder, lambda line: line["policy_version"] >= 1, process=process, log=log)

        assert "rollout: 1 -> 2 rollout workers" in credence("scale", str(folder), "rollout=2")
        two = wait_for_line(
            folder, lambda line: line["metrics"].get("rollout/num_workers") == 2, process=process, log=log
        )
        wait_for_line(folder, lambda line: line["policy_version"] >= two + 3, process=process, log=log)
        status = json.loads(credence("status", str(folder), "--json"))
        assert "rollout: 2 -> 1 rollout workers" in credence("scale", str(folder), "rollout=1")
        one = wait_for_line(
            folder,
            lambda line: line["policy_version"] > two and line["metrics"].get("rollout/num_workers") == 1,
            process=process,
            log=log,
        )
        wait_for_line(folder, lambda line: line["policy_version"] >= one + 2, process=process, log=log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM

    rollout = next(pool for pool in status["pools"] if pool["section"] == "rollout")
    assert [worker["state"] for worker in rollout["workers"]] == ["serving", "serving"]
    assert all(worker["node_address"] for worker in rollout["workers"])
    assert len(status["admissions"]) == 2
    for admission in status["admissions"]:
        assert admission["held_version"] == admission["published_version"]
    assert status["admissions"][1]["published_version"] > 0
    require_undisturbed(metric_lines(folder))
    assert not (folder / "cluster.json").exists()


def require_undisturbed(lines: list[dict[str, Any]]) -> None:
    """No step failed or was left out, no group was lost or made twice, and no token is of an older version."""
    assert [line["policy_version"] for line in lines] == list(range(len(lines)))
    for line in lines[1:]:
        metrics = line["metrics"]
        assert metrics["staleness/max_versions"] == 0
        assert metrics["rollout/num_restarts"] == 0
        assert metrics["ledger/dropped"] == metrics["ledger/regenerated"] == 0
        assert metrics["ledger/trained"] == 8 * line["policy_version"]


def credence(*arguments: str) -> str:
    completed = run([sys.executable, "-m", "system", *arguments])
    require_success(completed)
    return completed.stdout


def wait_for_line(
    folder: Path, is_met: Callable[[dict[str, Any]], bool], *, process: "subprocess.Popen[bytes]", log: Path
) -> int:
    """The policy version of the first line of metrics.jsonl for which `is_met`, as soon as there is one."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended:\n{log.read_text()[-6000:]}"
        if (folder / "metrics.jsonl").exists():
            for text in (folder / "metrics.jsonl").read_text().splitlines(keepends=True):
                if text.endswith("\n") and is_met(line := json.loads(text)):
                    return int(line["policy_version"])
        time.sleep(0.2)
    raise AssertionError(f"it did not come within {TIMEOUT_SECONDS} s:\n{log.read_text()[-6000:]}")
