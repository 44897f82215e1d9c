"""Whole runs: real Ray, real vLLM, real DeepSpeed, the embedded policy."""

import json
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest
from credence_process import (
    alive,
    command,
    metric_lines,
    require_success,
    resume_command,
    run,
    small_keys,
    started,
    summary,
    wait_for_file,
    wait_for_phase,
)

from benchmarks.resume import run_resume
from benchmarks.run_processes import family_of
from system.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of four synchronous updates on one rollout worker."""
    directory = tmp_path_factory.mktemp("undisturbed")
    require_success(run(command(directory)))
    return directory / "small"


def test_summary_balances_and_the_canary_agrees(undisturbed: Path) -> None:
    values = summary(undisturbed)

    assert values["num_updates"] == 4
    assert values["ledger_balanced"] is True
    assert values["ledger"]["trained"] == 4 * 8
    assert 0.0 < values["canary_max_abs_diff"] < 1e-4
    assert 0.0 <= values["accuracy_before"] <= 1.0
    assert 0.0 <= values["accuracy_after"] <= 1.0
    assert list(undisturbed.glob("**/*.png")), "no curves were drawn"


def test_metrics_have_a_line_for_each_update(undisturbed: Path) -> None:
    lines = metric_lines(undisturbed)

    assert [line["policy_version"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines[1:]:
        assert line["metrics"]["staleness/max_versions"] == 0
        assert abs(line["metrics"]["learner/mismatch_kl_nats"]) < 1e-6
    assert {"eval/accuracy_sampled", "eval/accuracy_greedy"} <= set(lines[2]["metrics"])


def test_a_recorded_update_is_computed_again_bit_for_bit(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after_a_checkpoint = main(["replay", str(undisturbed), "--step", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    by_name = {finding["what"]: finding for finding in found["findings"]}

    assert after_a_checkpoint == 0, found
    assert found["not_computed"] == []
    assert by_name["reward: verifier"]["num_compared"] == 8 * 4
    assert by_name["advantages"]["largest_difference"] == 0.0
    metrics = metric_lines(undisturbed)[3]["metrics"]
    for name in ("learner/loss", "learner/mismatch_kl_nats", "learner/ratio_max", "learner/gradient_norm"):
        assert float(by_name[name]["recorded"]) == pytest.approx(metrics[name], rel=1e-6, abs=1e-12)
        assert by_name[name]["is_reproduced"], by_name[name]

    assert main(["replay", str(undisturbed), "--step", "2"]) == 0
    assert "it needs the weights of policy version 1" in capsys.readouterr().out
    assert main(["replay", str(undisturbed), "--step", "1"]) == 2
    assert "update 1 is not recorded" in capsys.readouterr().err


def test_a_run_whose_newest_checkpoint_is_corrupt_goes_on_from_the_one_before_to_the_same_metrics(
    undisturbed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "small"
    shutil.copytree(undisturbed, copy)
    part = copy / "checkpoints" / "update_000004" / "learner" / "rank_00001.safetensors"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    refused = run(resume_command(f"{copy}@4"))
    assert refused.returncode == 2
    assert re.fullmatch(
        r"\S+rank_00001\.safetensors has other content than was saved\. The newest whole checkpoint is "
        rf"update_000002: credence train --resume {copy}@2",
        refused.stderr.splitlines()[-1].removeprefix("credence: "),
    )
    resumed = run(resume_command(copy))
    require_success(resumed)

    said = [line for line in resumed.stderr.splitlines() if line.startswith("credence: ")]
    assert re.fullmatch(
        r"credence: update_000004 cannot be used \(\S+ has other content than was saved\), and is set aside as "
        r"update_000004\.corrupt",
        said[0],
    )
    assert said[1] == ("credence: going on from update_000002: the 2 updates that the run made after it are made again")
    assert metric_lines(copy) == metric_lines(undisturbed)
    assert summary(copy)["ledger"] == summary(undisturbed)["ledger"]


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_goes_on_bit_by_bit(
    undisturbed: Path, tmp_path: Path
) -> None:
    keys = small_keys(tmp_path, name="killed") | {"checkpoint.every_updates": 1}

    figures = run_resume(tmp_path, keys=keys, num_kills=1, seed=0, reference=undisturbed)

    assert (figures["kills"], figures["num_updates"]) == (1, 4)
    assert figures["differences"] == []


def test_two_workers_one_losing_its_engine_and_one_dying_give_the_same_metrics(
    undisturbed: Path, tmp_path: Path
) -> None:
    arguments = command(tmp_path, rollout__num_workers=2, rollout__cpus_per_worker=0.25)
    with started(arguments, log=tmp_path / "log") as process:
        wait_for_phase(tmp_path / "small", "rollout", process=process, at_least=1)
        workers = [child for child in family_of(process.pid) if "RolloutWorker" in " ".join(child.cmdline())]
        assert len(workers) == 2
        [engine] = [child for child in workers[0].children(recursive=True) if "EngineCore" in " ".join(child.cmdline())]
        engine.kill()
        wait_for_phase(tmp_path / "small", "rollout", process=process, at_least=2)
        workers[1].kill()
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]

    values = summary(tmp_path / "small")
    assert values["ledger_balanced"] is True
    assert values["ledger"]["trained"] == 32
    assert metric_lines(tmp_path / "small")[-1]["metrics"]["rollout/num_restarts"] == 2
    # who receives a version, and so its largest difference, is another one when a worker is missing
    disturbed_names = ("rollout/num_", "ledger/regenerated", "weight_sync/")
    for line, expected in zip(metric_lines(tmp_path / "small"), metric_lines(undisturbed), strict=True):
        assert line["metrics"].get("weight_sync/canary_max_abs_diff_nats", 0.0) < 1e-4
        proved = expected["metrics"]["weight_sync/proved_fraction"]
        assert line["metrics"].get("weight_sync/proved_fraction", proved) == proved
        for name, value in expected["metrics"].items():
            if not name.startswith(disturbed_names):
                assert line["metrics"][name] == value, name


def test_a_learner_rank_killed_in_mid_step_is_replaced_and_the_metrics_are_those_of_the_undisturbed_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    with started(command(tmp_path), log=tmp_path / "log") as process:
        wait_for_phase(tmp_path / "small", "train", process=process, at_least=3)
        family = family_of(process.pid)
        learners = _named(family, "LearnerWorker")
        assert len(learners) == 2
        learners[1].kill()
        wait_for_phase(tmp_path / "small", "recover", process=process)
        wait_for_phase(tmp_path / "small", "train", process=process)
        now = family_of(process.pid)
        assert not set(learners) & set(_named(now, "LearnerWorker")), "a rank of the former group is left"
        for kind in ("RolloutWorker", "EngineCore", "RewardWorker"):
            assert _named(now, kind) == _named(family, kind) != [], f"{kind} did not stay up"
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]

    log, values = (tmp_path / "log").read_text(), summary(tmp_path / "small")
    assert re.search(r"Learner lost: learner rank [01] died.*update_000002 \(restart 1 of at most 3\); 1 updates", log)
    assert (values["learner_restarts"], values["ledger"]["undone"], values["ledger"]["trained"]) == (1, 8, 32)
    assert values["ledger_balanced"] is True
    assert 0.0 < values["learner_recovery_seconds"] < 120.0
    for line, expected in zip(metric_lines(tmp_path / "small"), metric_lines(undisturbed), strict=True):
        of_the_loss = {"learner/num_restarts", "ledger/undone"}
        assert _without(line["metrics"], of_the_loss) == _without(expected["metrics"], of_the_loss)
    _require_gone(family)


def test_a_killed_driver_and_a_lost_cluster_are_retried_and_the_metrics_are_those_of_the_undisturbed_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    with started([*command(tmp_path), "--retries", "2"], log=tmp_path / "log") as process:
        wait_for_file(folder / "checkpoints" / "update_000002", process=process)
        first = family_of(process.pid)[1:]
        _driver_of(process.pid).kill()
        second_driver = _next_driver(process.pid, former=first)
        assert alive(first) == []
        wait_for_phase(folder, "start", process=process)
        second = family_of(process.pid)[1:]
        [control_service] = _named(second, "gcs/gcs_server")
        lost = time.monotonic()
        control_service.kill()
        second_driver.wait(45)
        seconds = time.monotonic() - lost
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]

    log = (tmp_path / "log").read_text()
    assert f"the run ended by SIGKILL; attempt 2 of at most 3: credence train --resume {folder}" in log
    assert re.search(
        r"^credence: Ray's control service .* Continue from update_000002: credence train --resume", log, re.M
    )
    assert f"the run ended by exit code 2; attempt 3 of at most 3: credence train --resume {folder}" in log
    assert seconds < 45.0
    assert metric_lines(folder) == metric_lines(undisturbed)
    _require_gone([*first, *second])


def test_rollouts_one_version_ahead_stay_within_the_bound(tmp_path: Path) -> None:
    require_success(run(command(tmp_path, controller__max_staleness=1, run__num_updates=6)))

    values = summary(tmp_path / "small")
    assert values["ledger_balanced"] is True
    assert values["ledger"]["trained"] == 6 * 8
    staleness = [line["metrics"].get("staleness/max_versions", 0) for line in metric_lines(tmp_path / "small")]
    assert max(staleness) == 1


def _driver_of(supervisor: int) -> psutil.Process:
    [driver] = psutil.Process(supervisor).children()
    return driver


def _next_driver(supervisor: int, *, former: list[psutil.Process]) -> psutil.Process:
    """The driver of the next attempt, as soon as the supervisor has no other child."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        children = psutil.Process(supervisor).children()
        if len(children) == 1 and children[0] not in former:
            return children[0]
        time.sleep(0.05)
    raise AssertionError("there is no next attempt")


def _named(family: list[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for process in family:
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.pid)


def _without(values: dict[str, float], names: set[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in names}


def _require_gone(family: list[psutil.Process], *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(family) == []
