"""One run, scaled while it goes on: 1 -> 4 -> 2 rollout workers and 1 -> 2 -> 1 scorers, by `credence scale`.

    head of a Ray cluster with 2 CPUs ─ the run starts ─ rollout=4: three workers wait for a node ─ a node joins
    (a second raylet with 3 CPUs) ─ four serve ─ rollout=2 ─ scorer=2 ─ scorer=1 ─ the second node is killed with the
    workers on it: one goes on, the other waits for a node ─ rollout=1 takes the request back

Asserted from the run's own records: every update is there and trains whole, no token of an update is older than the
bound, no worker began to serve before it held the newest version, no group is lost, none is generated twice and no
worker is lost before the node is killed. The last line is JSON, with tokens/s before, during and after each change.
It takes eight minutes on two cores, which have no more to give to four engines than to one.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD_CPUS, NODE_CPUS = 2, 3  # one rollout worker fits on the head, three on the node
UPDATES_BETWEEN = 5  # of which throughput is taken
WAIT_SECONDS = 420.0
KEYS = [
    "run.name=scaling",
    "run.num_updates=100000",
    "run.max_seconds=null",
    "batch.prompts_per_step=8",
    "batch.completions_per_prompt=8",
    "batch.tokens_per_microbatch=4096",
    "evaluation.num_problems_final=8",
    "evaluation.completions_per_problem_final=1",
    "evaluation.every_updates=null",
    "checkpoint.every_updates=null",
    "learner.num_ranks=1",
    "rollout.cpus_per_worker=0.75",
    "rollout.kv_cache_gib=0.25",
    "rollout.start_timeout_seconds=400",
    "scorer.cpus_per_worker=0.25",
    "scorer.start_timeout_seconds=400",
    "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]",
    "tracker.wandb_mode=disabled",
]


class ScaledRun:
    """The run and the commands that change it."""

    def __init__(self, directory: Path, *, process: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
        self.folder = directory / "scaling"
        self.process = process
        self._environment = environment
        self._log = directory / "log"
        self.windows: list[tuple[str, int, int]] = []  # what went on, from which update to which

    def credence(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "system", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"credence {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.credence("status", str(self.folder), "--json"))
        return status

    def scale(self, wanted: str) -> None:
        start = self.num_updates()
        print(self.credence("scale", str(self.folder), wanted).splitlines()[0], flush=True)
        section, _, number = wanted.partition("=")
        self.wait(lambda: self.is_settled(section, int(number)), what=wanted)
        self.windows.append((f"while {wanted}", start, self.num_updates()))

    def settle(self, name: str) -> None:
        """A few updates of which the throughput is taken."""
        start = self.num_updates()
        self.wait(lambda: self.num_updates() >= start + UPDATES_BETWEEN, what=name, pause=0.2)
        self.windows.append((name, start, self.num_updates()))

    def wait(self, is_met: Callable[[], bool], *, what: str, pause: float = 2.0) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_met():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come about:\n{self._log.read_text(errors='replace')[-4000:]}")
            time.sleep(pause)

    def num_updates(self) -> int:
        return len(self.lines()) - 1

    def lines(self) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        whole = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in whole if line.endswith("\n")]

    def workers(self, section: str) -> list[dict[str, Any]]:
        pools = [pool for pool in self.status()["pools"] if pool["section"] == section]
        return [worker for pool in pools for worker in pool["workers"]]

    def is_settled(self, section: str, number: int) -> bool:
        return [worker["state"] for worker in self.workers(section)] == ["serving"] * number

    def has_serving(self, section: str, number: int) -> bool:
        return sum(worker["state"] == "serving" for worker in self.workers(section)) == number

    def has_waiting(self, section: str, number: int) -> bool:
        """Whether so many workers wait for a node."""
        return sum(worker["waits_for"] is not None for worker in self.workers(section)) == number


def play(run: ScaledRun, *, join: Callable[[], Callable[[], None]]) -> dict[str, Any]:
    """The changes in turn; `join` adds a node and returns what takes it away. What the run said at the end."""
    run.wait(lambda: run.num_updates() >= 1, what="the first update")
    run.settle("1 rollout worker, 1 scorer")
    before = run.num_updates()
    print(run.credence("scale", str(run.folder), "rollout=4").splitlines()[0], flush=True)
    run.wait(lambda: run.has_waiting("rollout", 3), what="a wait for a node")
    print(run.credence("status", str(run.folder)), flush=True)
    leave = join()
    run.wait(lambda: run.is_settled("rollout", 4), what="rollout=4")
    run.windows.append(("while rollout=4, a node joins", before, run.num_updates()))
    run.settle("4 rollout workers, 1 scorer")
    print(run.credence("status", str(run.folder)), flush=True)
    run.scale("rollout=2")
    run.settle("2 rollout workers, 1 scorer")
    run.scale("scorer=2")
    run.settle("2 rollout workers, 2 scorers")
    run.scale("scorer=1")
    run.settle("2 rollout workers, 1 scorer")
    undisturbed = run.num_updates()
    check_undisturbed(run.lines())
    leave()
    run.wait(lambda: run.lines()[-1]["metrics"]["rollout/num_restarts"] >= 1, what="the loss of a node", pause=0.5)
    run.wait(lambda: run.has_waiting("rollout", 1) and run.has_serving("rollout", 1), what="a wait for a node")
    run.windows.append(("while a node leaves", undisturbed, run.num_updates()))
    print(run.credence("status", str(run.folder)), flush=True)
    run.scale("rollout=1")
    run.settle("1 rollout worker after a node has left")
    return run.status()


def check_undisturbed(lines: list[dict[str, Any]]) -> None:
    """No worker lost, no group dropped or generated again."""
    last = lines[-1]["metrics"]
    for name in ("rollout/num_restarts", "scorer/num_restarts", "reward/num_restarts", "ledger/regenerated"):
        assert last[name] == 0, f"{name} is {last[name]}"
    assert last["ledger/dropped"] == 0, "a group was dropped"


def check_steps(lines: list[dict[str, Any]], *, admissions: list[dict[str, Any]]) -> None:
    """Every update is there, whole, and of tokens of the version that it trained; nobody served too early."""
    assert [line["policy_version"] for line in lines] == list(range(len(lines))), "an update is missing"
    for line in lines[1:]:
        metrics, version = line["metrics"], line["policy_version"]
        assert metrics["staleness/max_versions"] == 0, f"update {version} has a token of an older version"
        assert metrics["ledger/trained"] == 8 * version, f"update {version} did not train 8 groups"
    early = [each for each in admissions if each["held_version"] != each["published_version"]]
    assert not early, f"these served before they held the newest version: {early}"


def tokens_per_second(lines: list[dict[str, Any]], *, first: int, last: int) -> float | None:
    """Trained tokens over wall time between two updates."""
    if last <= first:
        return None
    tokens = lines[last]["metrics"]["progress/tokens"] - lines[first]["metrics"]["progress/tokens"]
    seconds = lines[last]["timing"]["progress/seconds"] - lines[first]["timing"]["progress/seconds"]
    return round(tokens / seconds, 1)


def measure(directory: Path) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    port, client_port = free_port(), free_port()
    head = [
        RAY,
        "start",
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
        f"--temp-dir={directory}/ray",
    ]
    node = [RAY, "start", f"--address=127.0.0.1:{port}"]
    train = [sys.executable, "-m", "system", "train", "configs/demo.yaml", *KEYS, f"run.directory={directory}"]
    with ExitStack() as stack:
        stack.enter_context(raylet(head, num_cpus=HEAD_CPUS, environment=environment))
        wait_for_port(port)
        with (directory / "log").open("wb") as log:
            process = stack.enter_context(
                family([*train, f"cluster.address=127.0.0.1:{port}"], environment=environment, output=log)
            )
        run = ScaledRun(directory, process=process, environment=environment)

        def join() -> Callable[[], None]:
            nodes = ExitStack()
            nodes.enter_context(raylet(node, num_cpus=NODE_CPUS, environment=environment))
            stack.push(nodes)
            return nodes.close

        status = play(run, join=join)
        by_name = run.credence("status", "scaling", "--address", f"127.0.0.1:{port}")
        assert by_name.startswith("scaling: update"), by_name
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    lines = run.lines()
    check_steps(lines, admissions=status["admissions"])
    last = lines[-1]["metrics"]
    in_flight = last["ledger/in_flight"]
    return {
        "num_updates": len(lines) - 1,
        "admissions": status["admissions"],
        "ledger_balanced": last["ledger/leased"] == last["ledger/trained"] + last["ledger/dropped"] + in_flight,
        "regenerated": last["ledger/regenerated"],
        "tokens_per_second": {
            name: tokens_per_second(lines, first=first, last=last) for name, first, last in run.windows
        },
    }


@contextmanager
def raylet(command: list[str], *, num_cpus: int, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A node of the cluster on this machine; killed at the end with all that runs on it."""
    options = [f"--num-cpus={num_cpus}", "--disable-usage-stats", "--block"]
    with family([*command, *options], environment=environment, output=subprocess.DEVNULL) as process:
        yield process


@contextmanager
def family(command: list[str], *, environment: dict[str, str], output: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is killed with all its descendants at the end."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            members = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for member in members:
                if member.is_running():
                    member.kill()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(Path(directory))
    print(json.dumps({"benchmark": "scaling"} | figures))
    if not figures["ledger_balanced"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
